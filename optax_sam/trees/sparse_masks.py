"""Exact sparse masks over a whole pytree, without sorting or joining leaves.

The bit patterns of non-negative floats order like integers, so the k-th
largest of all scores is found digit by digit, two bits per pass: at most 16
counting passes over the leaves, whatever their shapes and sharding, and up to
16 more to break ties.
"""

import fractions
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam import validation
from optax_sam.trees import array_types, control_flow, tree_math

EXCLUDED = -1  # a rank below all scores
_MAX_ENTRIES = 2**31 - 1  # the largest int32
_SMALLEST_NORMAL = 2**23  # bits of the smallest normal float32


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
  """Returns int32 ranks in the order of non-negative scores.

  Scores are compared in float32; negative and subnormal ones (which devices may
  flush) count as 0, NaN is never chosen.
  """
  score = score.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(score, jnp.int32)
  bits = jnp.where(bits < _SMALLEST_NORMAL, 0, bits)
  return jnp.where(jnp.isnan(score), EXCLUDED, bits)


def random_bits(key: jax.Array, tree: Any) -> Any:
  """Returns a tree of 31 random bits per entry, for a uniform choice."""
  leaves, structure = jax.tree.flatten(tree)

  def draw(i: int, leaf: jax.Array) -> jax.Array:
    draw_key, split = jax.random.fold_in(key, i), array_types.explicit(leaf)
    bits = jax.random.bits(draw_key, leaf.shape, jnp.uint32, out_sharding=split)
    bits = (bits >> 1).astype(jnp.int32)
    if isinstance(leaf, jax.core.Tracer):
      return bits  # equal on all devices, even if the leaf isn't
    # Joined with zeros derived from the leaf, so that sharding follows.
    return bits | jnp.zeros_like(leaf, dtype=jnp.int32)

  return structure.unflatten([draw(*item) for item in enumerate(leaves)])


def count(mask: Any) -> jax.Array:
  """Returns the number of True entries of all leaves, as an integer."""
  counts = [jnp.sum(leaf, dtype=jnp.int32) for leaf in jax.tree.leaves(mask)]
  return sum(counts, jnp.zeros((), jnp.int32))


def largest(scores: Any, k: Any) -> Any:
  """Chooses exactly the k largest entries of a pytree.

  Equal to `jax.lax.top_k` over all leaves joined: ties go to the first entry,
  by leaf and then in C order. It stores no ranks.

  Args:
    scores: floats, compared as by `rank_bits`, or int32 ranks, of which
      `EXCLUDED` is never chosen.
    k: number of entries to choose, at most the number of those that may be; an
      integer, traced or not.

  Returns:
    A tree of bools like `scores`.

  Raises:
    ValueError: if there are more than 2^31 - 1 entries.
  """
  size = tree_math.size(scores)
  if size > _MAX_ENTRIES:
    msg = (
      f'the leaves that may be perturbed must have at most {_MAX_ENTRIES} '
      f'entries together for an exact sparse mask, got {size}: exclude some '
      f'with mask=.'
    )
    raise ValueError(msg)
  k = jnp.asarray(k, jnp.int32)
  leaves, structure = jax.tree.flatten(scores)
  ends = itertools.accumulate(leaf.size for leaf in leaves)
  entries = [
    _Entries(leaf, first=jnp.int32(1 + end - leaf.size), zero=jnp.int32(0))
    for leaf, end in zip(leaves, ends, strict=True)
  ]

  search = _search if control_flow.is_traced() else _compiled_search
  threshold, kept = search(_at_least, 16, entries, jnp.int32(size), k)
  threshold = jnp.maximum(threshold, 0)  # above EXCLUDED
  digits = (size.bit_length() + 1) // 2
  minus_cut, _ = search(_ahead, digits, entries, kept, k, threshold)
  return structure.unflatten(
    [_ahead(x.ranks(), x.numbers(), minus_cut, threshold) for x in entries]
  )


def drop_and_grow(mask: Any, drop_bits: Any, grow_bits: Any, moved: Any) -> Any:
  """Drops entries of a mask, and grows an equal number of others.

  Of the chosen entries those with the smallest `drop_bits` are dropped, of the
  others those with the largest `grow_bits` are grown.
  """
  keep = jax.tree.map(lambda m, b: jnp.where(m, b, EXCLUDED), mask, drop_bits)
  grow = jax.tree.map(lambda m, b: jnp.where(m, EXCLUDED, b), mask, grow_bits)
  kept, grown = largest(keep, count(mask) - moved), largest(grow, moved)
  return jax.tree.map(jnp.logical_or, kept, grown)


def n_of_m(score: jax.Array, n: int, m: int) -> jax.Array:
  """Chooses the n largest of every m consecutive entries along the inputs.

  The inputs are all axes but the last, as in the kernels of Flax. All of a leaf
  is chosen if it has fewer than two axes, or if m doesn't divide its inputs. A
  leaf is gathered only if a group is on several devices.
  """
  if score.ndim < 2 or math.prod(score.shape[:-1]) % m:
    return jnp.ones(score.shape, bool)
  *outer, inputs, units = score.shape
  if inputs % m:
    outer, inputs = [], math.prod(score.shape[:-1])
  # Axes are joined only if necessary: a sharded one stays sharded.
  groups = score.reshape(*outer, inputs // m, m, units)
  mine, rival = groups[..., :, None, :], groups[..., None, :, :]
  index = jnp.arange(m)
  earlier = jnp.expand_dims(
    index[None, :] < index[:, None], (*range(len(outer) + 1), -1)
  )
  beaten = (rival > mine) | ((rival == mine) & earlier)
  chosen = jnp.sum(beaten, axis=-2, dtype=jnp.int32) < n
  return chosen.reshape(score.shape)


def check_fraction(name: str, value: Any, **bound: float) -> None:
  """Raises unless a fraction of the entries is a Python number in its range."""
  validation.check_static(name, value)
  validation.check_number(name, value, at_least=0, **bound)


class _Entries(NamedTuple):
  """The entries of a leaf, and the offsets of their numbers."""

  leaf: jax.Array
  first: jax.Array
  zero: jax.Array

  def ranks(self) -> jax.Array:
    """Returns the ranks of scores, or the leaf if it contains ranks."""
    is_rank = self.leaf.dtype == jnp.int32
    return self.leaf if is_rank else rank_bits(self.leaf)

  def numbers(self) -> jax.Array:
    """Numbers the entries in C order."""
    shape = self.leaf.shape
    number = jnp.full(shape, self.zero, jnp.int32)
    for axis, length in enumerate(shape):
      index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
      number = number * length + index
    return number + self.first


def _at_least(ranks: jax.Array, _: jax.Array, threshold: jax.Array) -> Any:
  return ranks >= threshold


def _ahead(
  ranks: jax.Array,
  numbers: jax.Array,
  minus_cut: jax.Array,
  threshold: jax.Array,
) -> Any:
  # Late ties rank below the others.
  late = numbers + minus_cut >= 0
  return ranks - late.astype(jnp.int32) >= threshold


def _search(
  choose: Callable[..., jax.Array],
  digits: int,
  entries: list[_Entries],
  kept: jax.Array,
  k: jax.Array,
  *fixed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Finds the largest x for which at least k entries are chosen.

  A larger x chooses fewer entries. A pass over memory finds two bits of x, and
  the search ends once exactly k are chosen. `digits` is half the bits of x,
  which is negative if they are below 32; `kept` is the number of entries that
  the smallest x chooses. Returns x, and the number of entries that it chooses.
  """
  smallest = jnp.int32(-(2 ** min(31, 2 * digits)))
  # XLA can't move computations on the outputs of a barrier before the loop: to
  # recompute ranks and numbers in every pass is faster than to write and read
  # them. The first barrier hides that `first` is constant; otherwise a loop
  # for each leaf would be compiled, not one for each shape.
  entries = jax.lax.optimization_barrier(entries)

  def narrow(state: Any) -> Any:
    shift, x, kept = state
    here, x = jax.lax.optimization_barrier((entries, x))
    trials = [x + (jnp.int32(i) << shift) for i in (1, 2, 3)]
    counts = _counts(choose, here, trials, fixed)
    for trial, count in zip(trials, counts, strict=True):
      x = jnp.where(count >= k, trial, x)
      kept = jnp.where(count >= k, count, kept)
    return shift - 2, x, kept

  def ties_left(state: Any) -> jax.Array:
    shift, _, kept = state
    return (shift >= 0) & (kept > k)

  smallest, kept = array_types.vary_like((smallest, kept), entries)
  state = jnp.int32(2 * digits - 2), smallest, kept
  return jax.lax.while_loop(ties_left, narrow, state)[1:]


# Outside of `jax.jit`: compiled once, not again at every call.
_compiled_search = jax.jit(_search, static_argnums=(0, 1))


def _counts(
  choose: Callable[..., jax.Array],
  entries: list[_Entries],
  trials: list[jax.Array],
  fixed: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
  """Counts the entries that each trial chooses.

  One reduction of several arrays reads a leaf once on all platforms; separate
  reductions would read and write more on CPUs.
  """

  def add(x: Any, y: Any) -> Any:
    return tuple(map(jnp.add, x, y))

  zeros = (jnp.int32(0),) * len(trials)
  total = zeros
  for entry in entries:
    ranks, numbers = entry.ranks(), entry.numbers()
    chosen = tuple(
      choose(ranks, numbers, trial, *fixed).astype(jnp.int32)
      for trial in trials
    )
    axes = tuple(range(ranks.ndim))
    total = add(total, jax.lax.reduce(chosen, zeros, add, axes))
  return total
