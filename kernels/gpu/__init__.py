"""GPU kernels: what a program of one reads, loops over and writes. Pallas is imported here and nowhere else."""
