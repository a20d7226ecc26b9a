"""Fit, judge, control and export a model."""
