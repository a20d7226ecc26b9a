"""From slices to model inputs, and data augmentation."""
