"""Labeled sets are read, grouped and pooled."""
