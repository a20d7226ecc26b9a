"""Exploratory analysis of data sets: contents, appearance and shortcuts."""
