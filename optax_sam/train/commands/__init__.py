"""The subcommands of `optax-sam`, and what they print while they run."""
