"""SAM with the ascent gradient of a part of the batch."""

import jax
import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import count, of_length


def subset_sam(step, rho=0.05, fraction=0.25, key=None):
  rows = np.arange(len(step.parts[0]['y']))
  if key is not None:
    draw = jax.random.fold_in(jax.random.key(key), step.t)
    rows = np.asarray(jax.random.permutation(draw, len(rows)))
  rows = rows[: count(fraction, len(rows))]
  epsilon = of_length(rho, step.ascent(rows=[rows] * len(step.parts)))
  return step.gradients(epsilon)


CASES = cases(
  optax_sam.subset_sam, subset_sam, {'rho': 0.1}, {'fraction': 3, 'key': 1}
)
