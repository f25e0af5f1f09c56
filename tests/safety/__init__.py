"""Ordinary habits: right, or an error that says what to write."""
