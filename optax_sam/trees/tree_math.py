"""Norms, inner products and safe scaling, accumulated in float32 or wider."""

import math
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

STABILIZER = 1e-12

Tree = TypeVar('Tree')


def is_float(leaf: Any) -> bool:
  """Returns whether a leaf of the parameters can be perturbed at all."""
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def wide_dtype(*leaves: Any) -> jnp.dtype:
  """Returns float64 if any of the leaves is float64, else float32."""
  double = jnp.dtype('float64')
  is_double = any(leaf.dtype == double for leaf in leaves)
  return double if is_double else jnp.dtype('float32')


def accumulator_dtype(tree: optax.Params) -> jnp.dtype:
  """Returns the dtype that sums over a whole tree are taken in."""
  return wide_dtype(*jax.tree.leaves(tree))


def widen(leaf: jax.Array) -> jax.Array:
  """Casts a leaf to float32, or leaves it float64."""
  return leaf.astype(wide_dtype(leaf))


def widen_like(tree: Any, reference: Any) -> Any:
  """Casts every leaf to float32, or to float64 where either leaf is that."""
  return jax.tree.map(lambda x, y: x.astype(wide_dtype(x, y)), tree, reference)


def zeros_like(tree: optax.Params, dtype: Any = None) -> optax.Params:
  """Returns a params-shaped accumulator of zeros.

  Args:
    tree: arrays, or their shapes and dtypes.
    dtype: that of the zeros; None for float32 or wider.
  """
  chosen = dtype

  def zeros(leaf: jax.Array) -> jax.Array:
    dtype = wide_dtype(leaf) if chosen is None else chosen
    # Derived from the leaf where it is an array, so that sharding follows.
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jnp.zeros(leaf.shape, dtype)
    return jnp.zeros_like(leaf, dtype=dtype)

  return jax.tree.map(zeros, tree)


def _sum(terms: list[jax.Array], dtype: jnp.dtype) -> jax.Array:
  if not terms:
    return jnp.zeros((), dtype)
  # As a chain of additions XLA would copy it into each of its uses, one a
  # leaf, so that programs grew with the square of the number of leaves.
  stacked = jnp.stack([term.astype(dtype) for term in terms])
  return jnp.sum(jax.lax.optimization_barrier(stacked))


def dot(left: optax.Updates, right: optax.Updates) -> jax.Array:
  """Inner product over all leaves together."""
  products = jax.tree.map(
    lambda x, y: jnp.sum(widen(x) * widen(y)), left, right
  )
  return _sum(jax.tree.leaves(products), accumulator_dtype(left))


def norm(tree: optax.Updates) -> jax.Array:
  """One 2-norm over all leaves together."""
  return jnp.sqrt(dot(tree, tree))


def is_usable(size: jax.Array) -> jax.Array:
  """Whether a norm can be divided by: finite and not zero."""
  return jnp.isfinite(size) & (size > 0)


def all_finite(tree: Any) -> jax.Array:
  """Whether no number of a tree is infinite or NaN, though squares may be.

  Sums are the cheapest test. One that no float can hold counts as infinite.
  """
  # Behind a barrier XLA does not compute the tree anew, for the sum alone.
  leaves = jax.lax.optimization_barrier(jax.tree.leaves(tree))
  terms = [jnp.sum(widen(leaf)) for leaf in leaves]
  return jnp.isfinite(_sum(terms, accumulator_dtype(tree)))


def nan_unless(condition: jax.Array, tree: Tree) -> Tree:
  """Returns a tree, or NaN in its place."""
  return jax.tree.map(lambda x: jnp.where(condition, x, jnp.nan), tree)


def is_negligible(difference: jax.Array, reference: jax.Array) -> jax.Array:
  """Whether the norm of a difference is mere rounding of what it came from.

  Blown up to a fixed length, the rounding noise that remains of two nearly
  equal vectors would be a direction without meaning.
  """
  return difference <= 8 * jnp.finfo(difference.dtype).eps * reference


def scale_to(radius: Any, tree: Tree, size: jax.Array | None = None) -> Tree:
  """Scales a tree to length `radius`; to zero where its norm is unusable.

  Args:
    radius: the length asked for, a scalar.
    tree: what to scale; each leaf keeps its dtype.
    size: the norm to divide by, where it isn't the 2-norm of `tree`.

  Returns:
    `radius * tree / (size + 1e-12)`, or zeros if `size` is 0 or not finite.
  """
  size = norm(cast(optax.Updates, tree)) if size is None else size
  usable = is_usable(size)
  scale = jnp.asarray(radius, size.dtype) / (
    jnp.where(usable, size, 1.0) + STABILIZER
  )
  return multiply_where(usable, scale, tree)


def multiply_where(condition: jax.Array, scale: jax.Array, tree: Tree) -> Tree:
  """Returns `scale * tree` where the condition holds, else zeros."""

  def multiply(leaf: jax.Array) -> jax.Array:
    wide = widen(leaf)
    # A select, not a product with 0: 0 * nan is nan.
    scaled = jnp.where(condition, scale.astype(wide.dtype) * wide, 0.0)
    return scaled.astype(leaf.dtype)

  return jax.tree.map(multiply, tree)


def add(params: optax.Params, perturbation: optax.Updates) -> optax.Params:
  """Returns the perturbed parameters, in the dtype of the parameters."""
  return jax.tree.map(
    lambda p, e: p + jax.lax.stop_gradient(e).astype(p.dtype),
    params,
    perturbation,
  )


def increment(count: jax.Array) -> jax.Array:
  """Counts one step more, and stays at the largest integer."""
  return jnp.asarray(optax.safe_increment(count))


def size(tree: optax.Params) -> int:
  """Number of entries of all leaves together."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
