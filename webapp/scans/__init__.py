"""Scans: submitting them, the worklist, and the page of a result with its pictures and reports."""
