"""The interface of a fit, and one module per architecture."""
