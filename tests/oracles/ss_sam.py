"""SS-SAM."""

import jax
import jax.numpy as jnp

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.step import of_length


def ss_sam(step, rho=0.05, probability=0.5, *, key):
  coin = jax.random.fold_in(jax.random.key(key), step.t)
  if step.skips(jax.random.bernoulli(coin, jnp.float32(probability))):
    return step.gradients()
  return step.gradients(of_length(rho, step.ascent()))


CASES = cases(
  optax_sam.ss_sam, ss_sam, {'rho': 0.1, 'probability': 0.5, 'key': 1}
)
