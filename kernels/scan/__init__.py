"""Ways to run a recurrence, which know it by its five functions only."""
