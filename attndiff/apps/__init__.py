"""What people run: the only part above pipelines and training."""
