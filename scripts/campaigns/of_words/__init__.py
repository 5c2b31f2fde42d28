"""What `words.py` compares, and its report."""
