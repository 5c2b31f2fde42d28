"""What is done with models that make pictures of pictures."""
