"""What is done with models that write captions."""
