"""Hemoscan's workers: they move rows from queued to a verdict, with `ml` in between. Nothing
imports this package.
"""
