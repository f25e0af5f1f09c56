"""The subcommands of `optax-sam` and their progress output."""
