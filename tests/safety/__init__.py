"""Common usage: the correct result, or an error with the fix."""
