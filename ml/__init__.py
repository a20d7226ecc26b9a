"""Hemoscan's learning package: arrays and files in, findings and model folders out.

It has never heard of Flask, Celery or a database (`tests/test_architecture.py` holds that).
"""
