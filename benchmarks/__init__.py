"""Commands that run measurements and print tables."""
