"""Running means of parameters, updated by parameters or by other means.

All parameters here are floating-point leaves; means are float32 or wider.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.trees import array_types, tree_math


class RunningMean(NamedTuple):
  """A mean, and the number of its members.

  Attributes:
    mean: like the parameters, float32 or wider; zeros if it has no member.
    size: number of members, a scalar int32.
  """

  mean: optax.Params
  size: jax.Array


def empty(params: optax.Params) -> RunningMean:
  """Returns a mean without members."""
  size = array_types.vary_like(jnp.zeros((), jnp.int32), params)
  return RunningMean(tree_math.zeros_like(params), size)


def add(running: RunningMean, params: optax.Params) -> RunningMean:
  """Adds parameters, unless they aren't finite."""
  one = RunningMean(
    jax.tree.map(lambda w, m: w.astype(m.dtype), params, running.mean),
    tree_math.all_finite(params).astype(jnp.int32),
  )
  return merge(running, one)


def merge(left: RunningMean, right: RunningMean) -> RunningMean:
  """Returns the mean of the members of both."""
  size = left.size + right.size
  is_empty = right.size == 0

  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    weight = right.size.astype(x.dtype) / jnp.maximum(size, 1).astype(x.dtype)
    # A select, not a product with 0: 0 * nan is nan.
    return jnp.where(is_empty, x, x + weight * (y - x))

  return RunningMean(jax.tree.map(leaf, left.mean, right.mean), size)


def value(running: RunningMean, params: optax.Params) -> optax.Params:
  """Returns the mean like the parameters; these, if it has no members."""
  mean = optax.tree.cast_like(running.mean, params)
  return optax.tree.where(running.size > 0, mean, params)
