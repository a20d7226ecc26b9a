"""Scans that others read too: sharing, opinions, and the review queue."""
