"""Distances and coverage between sets of images, measured on features of an extractor."""
