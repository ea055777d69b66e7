"""`make bench-gpu`: everything that needs a GPU, in one call of minutes. See `__main__.py`."""
