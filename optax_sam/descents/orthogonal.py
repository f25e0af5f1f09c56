"""The part of a gradient that is orthogonal to another one."""

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics


def orthogonal_part(
  updates: optax.Updates, *, to: optax.Updates
) -> tuple[optax.Updates, jax.Array]:
  """Returns what is left without the direction of `to`, and its norm.

  Both are 0 if that is mere rounding.
  """
  size = numerics.norm(to)
  usable = size > 0
  slope = numerics.dot(updates, to) / jnp.where(usable, jnp.square(size), 1)
  slope = jnp.where(usable, slope, 0)

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = numerics.wide_dtype(x, y)
    return x.astype(dtype) - slope.astype(dtype) * y.astype(dtype)

  part = jax.tree.map(leaf, updates, to)
  length = numerics.norm(part)
  # That of `updates`, by Pythagoras: one pass over the parameters less.
  whole = jnp.hypot(length, (slope * size).astype(length.dtype))
  negligible = numerics.is_negligible(length, whole)
  part = jax.tree.map(lambda x: jnp.where(negligible, 0, x), part)
  return part, jnp.where(negligible, 0, length)
