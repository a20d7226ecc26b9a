"""The contract of a fit, and one module an architecture."""
