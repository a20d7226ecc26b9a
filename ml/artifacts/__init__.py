"""The model folder: card, graphs and checks; no pickle, no code."""
