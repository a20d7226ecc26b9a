"""Figures from answers; knows no model and no data set."""
