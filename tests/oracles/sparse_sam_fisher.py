"""Sparse SAM by Fisher information."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import largest, of_length


def kept_fraction(scores, sparsity):
  kept = len(scores) - int(np.ceil(sparsity * len(scores)))
  mask = np.zeros(len(scores))
  mask[largest(scores, kept)] = 1
  return mask


def one_of_two(step, scores):
  """Selects the larger of every two inputs, or leaves without inputs."""
  mask = np.ones(len(scores))
  for name, leaf in step.problem.slices.items():
    shape = step.problem.shapes[name]
    if len(shape) > 1:
      pairs = scores[leaf].reshape(-1, 2, shape[-1])
      kept = pairs[:, 0] >= pairs[:, 1]
      mask[leaf] = np.stack([kept, ~kept], axis=1).ravel()
  return mask


def fisher_mask(step, sparsity, num_samples, refresh_every, pattern='global'):
  """Refreshes the mask in some steps, from the examples of each device."""
  if step.t % refresh_every == 0:
    fraction = int(np.ceil(num_samples / len(step.parts)))
    squares = [
      step.problem.gradient(step.w, {k: v[i : i + 1] for k, v in part.items()})
      ** 2
      for part in step.parts
      for i in range(min(fraction, len(part['y'])))
    ]
    scores = np.sum(squares, axis=0)
    step.memory['mask'] = (
      kept_fraction(scores, sparsity)
      if pattern == 'global'
      else one_of_two(step, scores)
    )
  return step.memory['mask']


def sparse_sam_fisher(
  step,
  rho=0.05,
  sparsity=0.5,
  num_samples=128,
  *,
  refresh_every,
  pattern='global',
):
  mask = fisher_mask(step, sparsity, num_samples, refresh_every, pattern)
  return step.gradients(mask * of_length(rho, step.ascent()))


CASES = cases(
  optax_sam.sparse_sam_fisher,
  sparse_sam_fisher,
  {'rho': 0.1, 'num_samples': 5, 'refresh_every': 2},
  {'num_samples': 64},
  {'sparsity': 0.7, 'num_samples': 37},  # two parts of 16, and a remainder
  {'pattern': '1:2'},
)
