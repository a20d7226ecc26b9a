"""A finished model on labeled images: external validation, heat maps, calibration to a site."""
