"""Methods in NumPy that look at some of the examples."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.distributed.by_hand.step import LEAVES, count, largest, of_length
from tests.distributed.problem import RHO


def top(step, size):
  return [largest(x, count(size, len(x))) for x in step.losses()]


def k_sam(step, ascent=2, descent=0.5):
  epsilon = of_length(RHO, step.ascent(rows=top(step, ascent)))
  return step.gradients(epsilon, top(step, descent))


def ordered_sgd(step, k=0.5):
  return step.gradients(rows=top(step, k))


def esam(step, gamma=0.5, beta=0.6):
  draw = jax.random.fold_in(jax.random.key(1), step.t)
  coins = [
    jax.random.bernoulli(jax.random.fold_in(draw, i), jnp.float32(beta))
    for i in range(len(LEAVES))
  ]
  kept = np.repeat(coins, [leaf.stop - leaf.start for leaf in LEAVES.values()])
  epsilon = of_length(RHO / beta, kept * step.ascent())
  before, after = step.losses(), step.losses(epsilon)
  rows = [
    largest(y - x, count(gamma, len(x)))
    for x, y in zip(before, after, strict=True)
  ]
  return step.gradients(epsilon, rows)


def subset_sam(step, fraction=0.25, key=None):
  rows = np.arange(len(step.parts[0]['y']))
  if key is not None:
    draw = jax.random.fold_in(jax.random.key(key), step.t)
    rows = np.asarray(jax.random.permutation(draw, len(rows)))
  rows = rows[: count(fraction, len(rows))]
  epsilon = of_length(RHO, step.ascent(rows=[rows] * len(step.parts)))
  return step.gradients(epsilon)


def m_sam(step, size=3):
  rows = np.arange(len(step.parts[0]['y']))
  total = 0.0
  for start in range(0, len(rows), size):
    part = [rows[start : start + size]] * len(step.parts)
    perturbed = step.gradients(of_length(RHO, step.ascent(rows=part)), part)
    total = total + len(part[0]) / len(rows) * perturbed
  return total
