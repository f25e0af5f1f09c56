"""Configuration of the commands: flags, checks and output directories."""
