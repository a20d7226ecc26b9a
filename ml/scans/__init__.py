"""Files become slices in anatomical order."""
