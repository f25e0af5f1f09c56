"""Many devices and many processes in one run."""
