"""Published methods, each a few lines over `sharpness_aware`."""
