"""Fine-tuning of a small byte-level transformer by sharpness-aware methods."""
