"""Fuzzing of uploads and requests; see `bench/fuzz/__main__.py`."""
