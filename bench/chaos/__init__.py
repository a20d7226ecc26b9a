"""The proof that nothing is lost, doubled or stuck, whatever dies: `make chaos`, or `python -m
bench.chaos --help`.
"""
