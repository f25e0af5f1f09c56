"""The methods of the trainer, and their optimizers."""
