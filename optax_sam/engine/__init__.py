"""Components that all methods share."""
