"""Sparse SAM with a dynamic mask."""

import jax
import numpy as np

import optax_sam
from optax_sam.trees import sparse_masks
from tests.oracles.cases import cases
from tests.oracles.sparse_sam_fisher import kept_fraction
from tests.oracles.step import largest, of_length


def sparse_sam_dynamic(
  step,
  rho=0.05,
  sparsity=0.5,
  drop_rate=0.5,
  *,
  refresh_every,
  total_steps,
  key,
):
  key = jax.random.key(key)

  def draw(key):  # the random numbers of the library
    return step.problem.flat(
      sparse_masks.random_bits(key, step.problem.params())
    )

  mask = step.memory.get('mask')
  if mask is None:
    mask = kept_fraction(draw(key), sparsity)
  epsilon = of_length(rho, step.ascent())
  refreshed = mask.copy()
  if step.t % refresh_every == 0:  # for the next step
    active, outside = np.flatnonzero(mask), np.flatnonzero(mask == 0)
    rate = drop_rate / 2 * (1 + np.cos(np.pi * step.t / total_steps))
    moved = min(int(len(active) * rate), len(outside))
    flatness = -np.abs(epsilon.mean(axis=0)[active])
    bits = draw(jax.random.fold_in(jax.random.fold_in(key, step.t), 1))
    refreshed[active[largest(flatness, moved)]] = 0
    refreshed[outside[largest(bits[outside], moved)]] = 1
  step.memory['mask'] = refreshed
  return step.gradients(mask * epsilon)


CASES = cases(
  optax_sam.sparse_sam_dynamic,
  sparse_sam_dynamic,
  {'rho': 0.1, 'refresh_every': 2, 'total_steps': 20, 'key': 1},
)
