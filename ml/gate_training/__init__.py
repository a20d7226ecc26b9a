"""Training of the check "not a head CT"."""
