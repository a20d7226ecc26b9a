"""Measurements and the proof by chaos; each command says in its first lines how it is run."""
