"""GPU programs without a GPU: their machine code, and the times that a model predicts from it."""
