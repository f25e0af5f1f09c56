"""The trainer: compares sharpness-aware methods, command `optax-sam`."""
