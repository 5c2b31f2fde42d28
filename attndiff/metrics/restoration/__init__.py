"""Measures of images that were made of others, whose right answer is known."""
