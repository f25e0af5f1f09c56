"""Commands that measure, and print their tables."""
