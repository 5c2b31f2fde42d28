"""What a model is for, and what it is told."""
