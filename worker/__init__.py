"""Hemoscan's workers: they claim queued rows, call `ml` and write the results. No other package
imports this one.
"""
