"""An emulator of a GPU, for what compilers make of our kernels: PTX, executed in NumPy."""
