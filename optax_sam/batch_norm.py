"""Recomputes the running statistics of batch norm, for averaged weights."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.engine import partition
from optax_sam.trees import tree_math

Variables = Mapping[str, Any]

# A power of two that exceeds the statistics of a batch by far.
_HUGE = 2.0**64
_NOTHING = 1e-9  # largest remaining fraction of it that counts as no momentum
_FROZEN = 1.0
_ODD = 1.2345  # unlikely to be the mean of a batch


def reestimate_batch_norm(
  apply_fn: Callable[[Variables, Any], Variables],
  variables: Variables,
  batches: Iterable[Any],
) -> dict[str, Any]:
  """Recomputes the running statistics of batch norm, in one pass over data.

  Averaged or otherwise changed parameters need other running statistics: the
  mean over batches of the mean or variance that the layer computes in training
  mode. Every batch counts the same, so leave out a smaller last one. Means are
  in float32 or wider. The momentum of the layer has no effect: two further
  passes of the first batch determine it from `new = momentum * old + (1 -
  momentum) * s`. Statistics of frozen layers, and integers, are returned
  unchanged.

  Args:
    apply_fn: from variables and a batch to the collections that a pass in
      training mode changes, those of `mutable=`::

        lambda variables, batch: model.apply(
          variables, batch['inputs'], train=True, mutable=['batch_stats']
        )[1]

    variables: the collections of the model, with the changed `params`.
    batches: batches for `apply_fn`, at least one, in any order.

  Returns:
    The variables, with recomputed collections.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, UAI 2018.

  >>> import flax.linen as nn
  >>> model = nn.BatchNorm(use_running_average=False)
  >>> apply_fn = lambda *inputs: model.apply(*inputs, mutable=['batch_stats'])[
  ...   1
  ... ]
  >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0]])]
  >>> variables = model.init(jax.random.key(0), batches[0])
  >>> found = reestimate_batch_norm(apply_fn, variables, batches)['batch_stats']
  >>> [round(float(found[name][0]), 3) for name in ('mean', 'var')]
  [4.5, 2.5]
  """
  batches = iter(batches)
  try:
    first = next(batches)
  except StopIteration:
    msg = 'batches must hold at least one batch, got none.'
    raise ValueError(msg) from None
  changed = functools.partial(_changed, apply_fn)
  names = jax.eval_shape(changed, variables, {}, first).keys()
  if unknown := ', '.join(sorted(names - variables.keys())):
    msg = (
      f'apply_fn must return collections of variables, got {unknown}: leave it '
      f'out of mutable=.'
    )
    raise ValueError(msg)
  kept = {name: variables[name] for name in names}
  leaves = partition.Leaves(jax.tree.map(tree_math.is_float, kept))
  run = lambda batch, statistics: leaves.split(
    changed(variables, leaves.join(statistics, kept), batch)
  )
  old = leaves.split(kept)
  momenta = _momenta(functools.partial(run, first), old)
  zeros = jax.tree.map(
    lambda leaf, m: leaf if m == _FROZEN else jnp.zeros_like(leaf), old, momenta
  )
  mean = tree_math.zeros_like(zeros)
  for count, batch in enumerate(itertools.chain([first], batches), start=1):
    mean = _add(mean, run(batch, zeros), count)

  def scale(leaf: jax.Array, mean: jax.Array, momentum: float) -> jax.Array:
    if momentum == _FROZEN:
      return leaf
    return (mean / (1 - momentum)).astype(leaf.dtype)

  found = jax.tree.map(scale, old, mean, momenta)
  return {**variables, **leaves.join(found, kept)}


# The function is static, so that another call with it is not recompiled.
@functools.partial(jax.jit, static_argnums=0)
def _changed(apply_fn: Any, variables: Any, statistics: Any, batch: Any) -> Any:
  return dict(apply_fn({**variables, **statistics}, batch))


@jax.jit
def _add(mean: Any, new: Any, count: Any) -> Any:
  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + (y.astype(x.dtype) - x) / jnp.asarray(count).astype(x.dtype)

  return jax.tree.map(leaf, mean, new)


def _momenta(run: Callable[[Any], Any], statistics: Any) -> Any:
  """Returns the momentum of every leaf, 1 for leaves that don't change."""
  shifted = jax.tree.map(lambda leaf: leaf + _ODD, statistics)
  # Only numbers are fetched: statistics may be split over processes.
  is_moved = lambda old, new: bool(jnp.any(old != new))
  moves = jax.tree.map(is_moved, shifted, run(shifted))
  probe = lambda leaf, moving: jnp.full_like(leaf, _HUGE) if moving else leaf
  probed = jax.tree.map(probe, statistics, moves)

  def momentum(path: Any, moving: bool, new: jax.Array) -> Any:
    if not moving:
      return _FROZEN
    found, highest = (float(f(new)) / _HUGE for f in (jnp.min, jnp.max))
    if max(abs(found), abs(highest)) <= _NOTHING:
      return 0.0
    if not (0 <= found < 1 and found == highest):
      name = '/'.join(partition.path_parts(path))
      msg = (
        f'apply_fn must return running statistics only, got {name}, which is '
        f'no running mean: leave its collection out of mutable=.'
      )
      raise ValueError(msg)
    # A short decimal number, if that rounds to the momentum found.
    short = round(found, 6)
    is_short = np.asarray(short, new.dtype) == np.asarray(found, new.dtype)
    return short if is_short else found

  return jax.tree_util.tree_map_with_path(momentum, moves, run(probed))
