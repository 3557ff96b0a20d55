"""What every trainer of the project shares: loop, run folder, checkpoints, metrics."""
