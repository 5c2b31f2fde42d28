"""What is trained: modules from a batch to its loss."""
