"""The methods that the trainer knows, and the optimizers it builds."""
