"""Norms, inner products and safe scaling, accumulated in float32 or wider."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from optax_sam.trees import control_flow

STABILIZER = 1e-12
_SMALLEST_STABILIZED = 5e-10

Tree = TypeVar('Tree')


def is_float(leaf: Any) -> bool:
  """Whether a leaf of the parameters can be perturbed."""
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def wide_dtype(*leaves: Any) -> jnp.dtype:
  """Returns float64 if any of the leaves is float64, else float32."""
  double = jnp.dtype('float64')
  # Without jax_enable_x64 an array of NumPy in float64 becomes one in float32.
  kind = jax.dtypes.canonicalize_dtype
  is_double = any(kind(leaf.dtype) == double for leaf in leaves)
  return double if is_double else jnp.dtype('float32')


def accumulator_dtype(tree: optax.Params) -> jnp.dtype:
  """Returns the dtype of sums over a whole tree."""
  return wide_dtype(*jax.tree.leaves(tree))


def widen(leaf: jax.Array) -> jax.Array:
  """Casts a leaf to float32, unless it is float64."""
  return leaf.astype(wide_dtype(leaf))


def widen_like(tree: Any, reference: Any) -> Any:
  """Casts every leaf to float32, or to float64 if either leaf is float64."""
  return jax.tree.map(lambda x, y: x.astype(wide_dtype(x, y)), tree, reference)


def zeros_like(tree: optax.Params, dtype: Any = None) -> optax.Params:
  """Returns zeros like arrays or shapes, by default float32 or wider."""

  def zeros(leaf: jax.Array) -> jax.Array:
    kind = wide_dtype(leaf) if dtype is None else dtype
    # Derived from the leaf if it is an array, so that sharding follows.
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jnp.zeros(leaf.shape, kind)
    return jnp.zeros_like(leaf, dtype=kind)

  return jax.tree.map(zeros, tree)


def _over_leaves(
  reduce: Callable[..., jax.Array], terms: list[jax.Array], dtype: jnp.dtype
) -> jax.Array:
  """Reduces one scalar a leaf to one."""
  if not terms:
    return jnp.zeros((), dtype)
  # XLA would copy a chain of additions into each use, one per leaf, so that
  # compiled code would grow with the square of the number of leaves.
  stacked = jnp.stack([term.astype(dtype) for term in terms])
  return reduce(jax.lax.optimization_barrier(stacked))


def dot(left: optax.Updates, right: optax.Updates) -> jax.Array:
  """Inner product over all leaves together."""
  products = jax.tree.map(
    lambda x, y: jnp.sum(widen(x) * widen(y)), left, right
  )
  return _over_leaves(
    jnp.sum, jax.tree.leaves(products), accumulator_dtype(left)
  )


def dot_in_unit(
  left: optax.Updates, right: optax.Updates, unit: jax.Array
) -> jax.Array:
  """Returns the inner product of `left` and `right / unit`."""
  # The unit is nearly always 1, and a scaled tree would be written to memory.
  scaled = lambda: dot(left, divide(right, unit))
  return control_flow.cond(unit == 1, lambda: dot(left, right), scaled)


def squared_norm(tree: optax.Updates) -> tuple[jax.Array, jax.Array]:
  """Returns the square of the 2-norm over all leaves, and its unit.

  The unit is 1, or a power of two, which changes no other bit, where squares
  would under- or overflow. `norm = sqrt(square) * unit`.
  """
  dtype, add = accumulator_dtype(tree), functools.partial(_over_leaves, jnp.sum)
  sums = jax.tree.map(lambda x: jnp.sum(jnp.square(widen(x))), tree)
  square, exponent = add(jax.tree.leaves(sums), dtype), jnp.finfo(dtype).maxexp
  # Within these limits the squares that underflow are too small to matter.
  low, high = 2.0 ** -(exponent // 2), 2.0 ** (exponent * 3 // 4)
  is_usual = (square > low) & (square < high)
  power = jnp.where(square < 1, -5, 5) * (exponent // 8)
  unit = jnp.ldexp(jnp.ones_like(square), jnp.where(is_usual, 0, power))
  # A second sum takes less memory than a branch, for which XLA writes the tree
  # if it is not in memory yet.
  scaled = jax.tree.map(functools.partial(_divide_exactly, unit), tree, sums)
  return dot(scaled, scaled), unit


def _divide_exactly(
  unit: jax.Array, leaf: jax.Array, square: jax.Array
) -> jax.Array:
  """Divides a leaf by a power of two; `square` is the sum of its squares."""
  kind = wide_dtype(leaf)
  numbers = (1 / unit).astype(kind), jnp.asarray(jnp.finfo(kind).max, kind)
  # XLA writes an array of a number that leaves of equal shape share. After a
  # barrier with a sum of the leaf, the numbers are those of one leaf.
  factor, largest, _ = jax.lax.optimization_barrier((*numbers, square))
  # The minimum changes nothing. But for a constant leaf XLA computes leaf *
  # leaf * factor**2, even after a barrier, and that over- and underflows.
  return jnp.minimum(widen(leaf) * factor, largest)


@jax.custom_jvp
def norm(tree: optax.Updates) -> jax.Array:
  """One 2-norm over all leaves together; its derivative at 0 is 0."""
  square, unit = squared_norm(tree)
  return jnp.sqrt(square) * unit


@norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  size = norm(*primals)
  usable = is_usable(size)
  direction = divide(primals[0], jnp.where(usable, size, 1))
  return size, jnp.where(usable, dot(direction, tangents[0]), 0)


def divide(tree: optax.Updates, size: jax.Array) -> optax.Updates:
  """Divides by a scalar, in float32 or wider."""
  return jax.tree.map(
    lambda x: widen(x) * (1 / size.astype(wide_dtype(x))), tree
  )


def power_of_two(size: jax.Array, bits: int) -> jax.Array:
  """Returns the power of two below a norm, an exact divisor.

  It is 1 between `2**-bits` and `2**bits`, and if the norm is unusable.
  """
  size = jax.lax.stop_gradient(size)
  limit = jnp.finfo(size.dtype).maxexp - 4
  _, exponent = jnp.frexp(jnp.where(is_usable(size), size, 1))
  exponent = jnp.clip(exponent - 1, -limit, limit)
  exponent = jnp.where(jnp.abs(exponent) <= bits, 0, exponent)
  return jnp.ldexp(jnp.ones((), size.dtype), exponent)


def all_finite(tree: optax.Updates) -> jax.Array:
  """Whether a tree adds up to a finite number, so that all entries are."""
  # After a barrier XLA does not recompute the tree just for the sum.
  leaves = jax.lax.optimization_barrier(jax.tree.leaves(tree))
  sums = [jnp.sum(widen(leaf)) for leaf in leaves]
  return jnp.isfinite(_over_leaves(jnp.sum, sums, accumulator_dtype(tree)))


def is_usable(size: jax.Array) -> jax.Array:
  """Whether a norm can be divided by: finite and not zero."""
  return jnp.isfinite(size) & (size > 0)


def nan_unless(condition: jax.Array, tree: Tree) -> Tree:
  """Returns a tree, or NaN in its place."""
  return jax.tree.map(lambda x: jnp.where(condition, x, jnp.nan), tree)


def is_negligible(difference: jax.Array, reference: jax.Array) -> jax.Array:
  """Whether the norm of a difference is within rounding error.

  Scaled to a fixed length, the rounding error of two nearly equal vectors would
  be a meaningless direction.
  """
  return difference <= 8 * jnp.finfo(difference.dtype).eps * reference


def stabilized(size: jax.Array) -> jax.Array:
  """Adds the 1e-12 of published code to a norm, unless that is small.

  Otherwise the quotient would depend on the unit of the loss. So nothing is
  added in float32, or to norms below 5e-10: those of published runs are above.
  """
  if size.dtype != jnp.dtype('float64'):
    return size
  return size + jnp.where(size < _SMALLEST_STABILIZED, 0, STABILIZER)


def scale_to(radius: Any, tree: Tree, size: jax.Array | None = None) -> Tree:
  """Returns `radius * tree / stabilized(size)`, with unchanged dtypes.

  `size` is by default the 2-norm; of an unusable one the result is 0.
  """
  size = norm(cast(optax.Updates, tree)) if size is None else size
  usable = is_usable(size)
  divisor = stabilized(jnp.where(usable, size, 1.0))
  scale = jnp.asarray(radius, size.dtype) / divisor
  return multiply_where(usable & jnp.isfinite(scale), scale, tree)


def multiply_where(condition: jax.Array, scale: jax.Array, tree: Tree) -> Tree:
  """Returns `scale * tree` if the condition is true, else zeros."""

  def multiply(leaf: jax.Array) -> jax.Array:
    wide = widen(leaf)
    # A select, not a product with 0: 0 * nan is nan.
    scaled = jnp.where(condition, scale.astype(wide.dtype) * wide, 0.0)
    return scaled.astype(leaf.dtype)

  return jax.tree.map(multiply, tree)


def add(params: optax.Params, perturbation: optax.Updates) -> optax.Params:
  """Returns perturbed parameters, with a constant perturbation."""
  return move(params, jax.lax.stop_gradient(perturbation))


def move(params: optax.Params, updates: optax.Updates) -> optax.Params:
  """Returns the moved parameters, in the dtype of the parameters."""
  return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def increment(count: jax.Array) -> jax.Array:
  """Adds one to a counter, which stays at the largest integer."""
  return jnp.asarray(optax.safe_increment(count))


def size(tree: optax.Params) -> int:
  """Number of entries of all leaves together."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
