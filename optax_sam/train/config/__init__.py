"""What a command is told: its flags, their checks and its directory."""
