"""Programs that several tests run."""
