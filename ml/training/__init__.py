"""Train, evaluate, control and export a model."""
