"""How fast we are, always next to ssh in the same run; see `__main__.py`."""
