"""Hemoscan's workers: they claim queued rows, run `ml` and write the results. No other package
imports this one.
"""
