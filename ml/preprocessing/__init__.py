"""A slice becomes a model's input; training also varies it."""
