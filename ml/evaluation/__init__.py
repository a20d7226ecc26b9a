"""Metrics from predictions, independent of models and data sets."""
