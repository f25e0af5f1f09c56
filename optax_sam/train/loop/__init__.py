"""The training loop: a step, its evaluations and its checkpoints."""
