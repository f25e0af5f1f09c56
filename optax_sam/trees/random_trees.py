"""Trees of random numbers, drawn leaf by leaf from one key."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.trees import tree_math


@functools.partial(jax.jit, static_argnums=2)
def draw_directions(
  key: jax.Array, count: jax.Array, num_samples: int, like: optax.Params
) -> list[optax.Params]:
  """Draws standard normal entries, anew at every step."""
  step_key = jax.random.fold_in(key, count)
  return [
    draw_direction(jax.random.fold_in(step_key, sample), like)
    for sample in range(num_samples)
  ]


@jax.jit
def draw_direction(key: jax.Array, like: optax.Params) -> optax.Params:
  """Draws standard normal entries, float32 or wider."""
  leaves, structure = jax.tree.flatten(like)
  return structure.unflatten(
    [
      jax.random.normal(
        jax.random.fold_in(key, i), leaf.shape, tree_math.wide_dtype(leaf)
      )
      for i, leaf in enumerate(leaves)
    ]
  )


def draw_noise(key: jax.Array, count: jax.Array, like: Any) -> Any:
  """Draws standard normal entries, the same for the same number of a step."""
  return draw_direction(jax.random.fold_in(key, count), like)


def _random_signs(key: jax.Array, zeros: optax.Updates) -> optax.Updates:
  """Returns a direction of length 1 whose entries are equal in size.

  So that it is the same to the bit however it is compiled.
  """
  entry = 1 / math.sqrt(max(tree_math.size(zeros), 1))
  leaves, structure = jax.tree.flatten(zeros)

  def draw(i: int, leaf: jax.Array) -> jax.Array:
    signs = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, leaf.shape)
    # Joined with the zeros, so that sharding follows.
    return leaf + jnp.where(signs, entry, -entry).astype(leaf.dtype)

  return structure.unflatten([draw(*item) for item in enumerate(leaves)])
