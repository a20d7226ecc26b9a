"""Uploads and requests that nobody means well by, by the thousand; see `bench/fuzz/__main__.py`."""
