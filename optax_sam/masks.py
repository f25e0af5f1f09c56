"""Exact sparse masks over a whole pytree, without sorting or joining leaves.

The bit patterns of non-negative floats order like integers, so the k-th
largest of all scores is found by bisection: 31 counting passes over the
leaves, whatever their shapes and however they are sharded.
"""

import fractions
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam import numerics, validation

EXCLUDED = -1  # a rank below that of every score
_MAX_ENTRIES = 2**31 - 1  # those that an int32 can count


def num_kept(sparsity: float, size: int) -> int:
  """Returns floor((1 - sparsity) * size), in exact decimal arithmetic.

  >>> num_kept(0.9, 10), int((1 - 0.9) * 10)
  (1, 0)
  """
  return size - math.ceil(fractions.Fraction(str(sparsity)) * size)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
  """Returns (n, m) of a pattern such as '2:4', None of 'global'."""
  if pattern == 'global':
    return None
  parts = pattern.split(':') if isinstance(pattern, str) else []
  if len(parts) == 2 and all(part.isdecimal() for part in parts):
    n, m = int(parts[0]), int(parts[1])
    if 1 <= n <= m:
      return n, m
  msg = (
    f"pattern must be 'global' or 'n:m' with 1 <= n <= m, such as '2:4', got "
    f'{pattern!r}.'
  )
  raise ValueError(msg)


def rank_bits(score: jax.Array) -> jax.Array:
  """Returns int32 numbers in the order of non-negative scores.

  Scores are compared in float32; negative ones count as 0, NaN is never
  chosen.
  """
  score = score.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(jnp.maximum(score, 0.0), jnp.int32)
  return jnp.where(jnp.isnan(score), EXCLUDED, bits)


def random_bits(key: jax.Array, tree: Any) -> Any:
  """Returns a tree of 31 random bits an entry, for a uniform choice."""
  leaves, structure = jax.tree.flatten(tree)

  def draw(i: int, leaf: jax.Array) -> jax.Array:
    bits = jax.random.bits(jax.random.fold_in(key, i), leaf.shape, jnp.uint32)
    bits = (bits >> 1).astype(jnp.int32)
    if isinstance(leaf, jax.core.Tracer):
      return bits  # equal on all devices, also if the leaf isn't
    # Joined with zeros derived from the leaf, so that sharding follows.
    return bits | jnp.zeros_like(leaf, dtype=jnp.int32)

  return structure.unflatten([draw(*item) for item in enumerate(leaves)])


def count(mask: Any) -> jax.Array:
  """Returns the number of True entries of all leaves, as an integer."""
  counts = [jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(mask)]
  return sum(counts, jnp.zeros((), jnp.int32))


@jax.jit
def largest(bits: Any, k: Any) -> Any:
  """Chooses exactly the k largest entries of a pytree of ranks.

  Equal to `jax.lax.top_k` over all leaves joined: ties go to the entry that
  comes first, by leaf and then in C order.

  Args:
    bits: int32 ranks; `EXCLUDED` is never chosen.
    k: how many, at most the number of entries that may be chosen; an integer,
      traced or not.

  Returns:
    A tree of bools like `bits`.

  Raises:
    ValueError: if there are more than 2^31 - 1 entries.
  """
  size = numerics.size(bits)
  if size > _MAX_ENTRIES:
    msg = (
      f'the leaves that may be perturbed must have at most {_MAX_ENTRIES} '
      f'entries together for an exact sparse mask, got {size}: leave some out '
      f'with mask=.'
    )
    raise ValueError(msg)
  k = jnp.asarray(k, jnp.int32)
  threshold = _bisect(
    lambda t: count(jax.tree.map(lambda b: b >= t, bits)) >= k
  )
  above = jax.tree.map(lambda b: b > threshold, bits)
  tied = jax.tree.map(lambda b: b == threshold, bits)
  position, room = _positions(bits), k - count(above)

  def before(cut: jax.Array) -> Any:
    return jax.tree.map(lambda t, i: t & (i < cut), tied, position)

  admitted = before(_bisect(lambda cut: count(before(cut)) <= room))
  return jax.tree.map(jnp.logical_or, above, admitted)


def drop_and_grow(mask: Any, drop_bits: Any, grow_bits: Any, moved: Any) -> Any:
  """Moves entries of a mask: as many are grown as are dropped.

  Args:
    mask: tree of bools.
    drop_bits: ranks; the chosen entries with the smallest are dropped.
    grow_bits: ranks; the largest of those not chosen before are grown.
    moved: how many entries to move.

  Returns:
    A mask with as many entries as before.
  """
  keep = jax.tree.map(lambda m, b: jnp.where(m, b, EXCLUDED), mask, drop_bits)
  grow = jax.tree.map(lambda m, b: jnp.where(m, EXCLUDED, b), mask, grow_bits)
  kept, grown = largest(keep, count(mask) - moved), largest(grow, moved)
  return jax.tree.map(jnp.logical_or, kept, grown)


def n_of_m(score: jax.Array, n: int, m: int) -> jax.Array:
  """Chooses the n largest of every m consecutive entries along the inputs.

  The inputs are all axes but the last, as in the kernels of Flax. A leaf with
  fewer than two axes, or whose number of inputs m doesn't divide, is chosen
  whole. A leaf is gathered only where a group lies on several devices.
  """
  if score.ndim < 2 or math.prod(score.shape[:-1]) % m:
    return jnp.ones(score.shape, bool)
  *outer, inputs, units = score.shape
  if inputs % m:
    outer, inputs = [], math.prod(score.shape[:-1])
  # Axes are joined only where they must be: a sharded one stays sharded.
  groups = score.reshape(*outer, inputs // m, m, units)
  mine, rival = groups[..., :, None, :], groups[..., None, :, :]
  index = jnp.arange(m)
  earlier = jnp.expand_dims(
    index[None, :] < index[:, None], (*range(len(outer) + 1), -1)
  )
  beaten = (rival > mine) | ((rival == mine) & earlier)
  chosen = jnp.sum(beaten, axis=-2, dtype=jnp.int32) < n
  return chosen.reshape(score.shape)


def check_sparsity(sparsity: Any) -> None:
  """Raises unless a sparsity is a Python number in [0, 1]."""
  if not validation.is_python_number(sparsity):
    msg = (
      f'sparsity must be a Python number in [0, 1], since it decides how many '
      f'entries are perturbed, got {sparsity!r}. With '
      f"optax.inject_hyperparams write static_args=('sparsity',)."
    )
    raise ValueError(msg)
  validation.check_number('sparsity', sparsity, at_least=0, at_most=1)


def _bisect(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Returns the largest t in [0, 2^31) that holds, if all smaller ones do."""

  def narrow(i: jax.Array, t: jax.Array) -> jax.Array:
    trial = t + (jnp.int32(1) << (30 - i))
    return jnp.where(holds(trial), trial, t)

  return jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), narrow, jnp.int32(0))


def _positions(tree: Any) -> Any:
  """Numbers all entries: leaves in order, C order inside a leaf."""
  leaves, structure = jax.tree.flatten(tree)
  numbered, offset = [], 0
  for leaf in leaves:
    position = jnp.full(leaf.shape, offset, jnp.int32)
    stride = 1
    for axis in reversed(range(leaf.ndim)):
      index = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis)
      position += stride * index
      stride *= leaf.shape[axis]
    numbered.append(position)
    offset += leaf.size
  return structure.unflatten(numbered)
