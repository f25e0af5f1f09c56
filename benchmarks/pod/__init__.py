"""Steps of the trainer, compiled for TPU pods without a TPU."""
