"""Read files as slices in anatomical order."""
