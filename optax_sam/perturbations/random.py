"""Perturbations of leaves or entries drawn at random."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation


class RandomState(NamedTuple):
  """State of `keep_random_tensors` and `keep_random_entries`.

  Attributes:
    count: number of steps so far, a scalar int32.
    key: typed PRNG key that all draws derive from.
  """

  count: jax.Array
  key: jax.Array


def keep_random_tensors(
  probability: float, key: jax.Array | int
) -> optax.GradientTransformation:
  """Keeps whole leaves at random, by one coin a leaf and step: ESAM.

  Args:
    probability: chance that a leaf is kept, in (0, 1].
    key: integer seed or typed key, the same on all devices.
  """
  return _keep_at_random(probability, key, shape=lambda _: ())


def keep_random_entries(
  probability: float, key: jax.Array | int
) -> optax.GradientTransformation:
  """Keeps single entries at random, by one coin an entry and step.

  Args:
    probability: chance that an entry is kept, in (0, 1].
    key: integer seed or typed key, the same on all devices.
  """
  return _keep_at_random(probability, key, shape=lambda leaf: leaf.shape)


def _keep_at_random(
  probability: Any, key: Any, shape: Callable[[Any], tuple[int, ...]]
) -> optax.GradientTransformation:
  validation.check_number('probability', probability, above=0, at_most=1)
  validation.check_key(key)

  def init(params: optax.Params) -> RandomState:
    del params
    return RandomState(jnp.zeros((), jnp.int32), validation.as_key(key))

  @jax.jit
  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, RandomState]:
    del params
    draw = jax.random.fold_in(state.key, state.count)
    leaves, structure = jax.tree.flatten(updates)
    kept = [
      jnp.where(
        jax.random.bernoulli(
          jax.random.fold_in(draw, i),
          jnp.asarray(probability, jnp.float32),
          shape(leaf),
        ),
        leaf,
        0,
      )
      for i, leaf in enumerate(leaves)
    ]
    state = RandomState(numerics.increment(state.count), state.key)
    return structure.unflatten(kept), state

  return optax.GradientTransformation(init, update)
