"""Data sets as tables, one row an image not yet decoded: folders, parquet files, Hub datasets."""
