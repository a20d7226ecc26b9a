"""Chaos tests: nothing is lost, duplicated or stuck, whatever fails: `make chaos`, or `python -m
bench.chaos --help`.
"""
