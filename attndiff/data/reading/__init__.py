"""Rows of a table to arrays: at once for what fits into memory, at the first visit for what does not."""
