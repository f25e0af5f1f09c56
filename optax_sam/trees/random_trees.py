"""Trees of random numbers, drawn leaf by leaf from one key."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.trees import array_types, tree_math


def draw_normal(key: jax.Array, count: Any, like: optax.Params) -> optax.Params:
  """Draws the `count`-th tree of standard normal entries, float32 or wider."""
  key = jax.random.fold_in(key, count)
  leaves, structure = jax.tree.flatten(like)

  def draw(i: int, leaf: jax.Array) -> jax.Array:
    leaf_key = jax.random.fold_in(key, i)
    dtype, split = tree_math.wide_dtype(leaf), array_types.explicit(leaf)
    lies = {} if split is None else {'out_sharding': split}
    return jax.random.normal(leaf_key, leaf.shape, dtype, **lies)

  return structure.unflatten([draw(*item) for item in enumerate(leaves)])


def draw_signs(key: jax.Array, zeros: optax.Updates) -> optax.Updates:
  """Draws a direction of length 1 whose entries have one absolute value.

  So it is the same bit by bit, however it is compiled.
  """
  entry = 1 / math.sqrt(max(tree_math.size(zeros), 1))
  leaves, structure = jax.tree.flatten(zeros)

  def draw(i: int, leaf: jax.Array) -> jax.Array:
    signs = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, leaf.shape)
    # Added to the zeros, so that sharding follows.
    return leaf + jnp.where(signs, entry, -entry).astype(leaf.dtype)

  return structure.unflatten([draw(*item) for item in enumerate(leaves)])
