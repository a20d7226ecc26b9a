"""Benchmarks, chaos tests and fuzzing; each command's docstring states its usage."""
