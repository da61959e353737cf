"""Minutes on a machine with a GPU, which is there once: stages, their steps, and what becomes of the records."""
