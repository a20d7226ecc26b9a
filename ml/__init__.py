"""Hemoscan's machine learning package: arrays and files in, predictions and model folders out.

It does not depend on Flask, Celery or a database (see `tests/test_architecture.py`).
"""
