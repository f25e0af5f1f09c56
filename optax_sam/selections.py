"""Batch selections: which examples enter each of the two gradients?"""

from optax_sam.engine.selection import (
  Selected,
  Selection,
  all_examples,
  check_size,
  largest,
  num_examples,
  top_k,
  weighted,
)
from optax_sam.methods.esam import sharpest
from optax_sam.methods.m_sam import micro_batches
from optax_sam.methods.subset_sam import RandomSubsetState, random_subset

__all__ = [
  'RandomSubsetState',
  'Selected',
  'Selection',
  'all_examples',
  'check_size',
  'largest',
  'micro_batches',
  'num_examples',
  'random_subset',
  'sharpest',
  'top_k',
  'weighted',
]
