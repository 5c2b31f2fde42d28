"""What is predicted, how noise is taken away, and what leads it."""
