"""The one form of a model on disk."""
