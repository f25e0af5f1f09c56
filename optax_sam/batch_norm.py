"""Running statistics of batch norm for parameters that no step has seen."""

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

# A power of two, beside which the statistics of a batch are mere rounding.
_HUGE = 2.0**64
_NOTHING = 1e-9  # what they leave of it where there is no momentum
_FROZEN = 1.0
# No mean of a batch hits it by chance.
_ODD = 1.2345


def reestimate_batch_norm(
  apply_fn: Callable[[Variables, Any], Variables],
  variables: Variables,
  batches: Iterable[Any],
) -> dict[str, Any]:
  """Computes the running statistics of batch norm anew, in one pass over data.

  Averaged or otherwise changed parameters have other activations than those
  that the running statistics are of. With `s_i` the mean or the variance of
  batch i, as the layer computes it in training mode, and n batches::

    statistic = (s_1 + ... + s_n) / n

  Every batch counts the same, whatever its number of examples, so leave out a
  smaller last one. Means are cumulative, in float32 or wider: the momentum of
  the layers has no part in them. It is read off a pass with made-up statistics
  (`new = momentum * old + (1 - momentum) * s`), so that no layer need be
  changed; the first batch is passed three times for that.

  Leaves that are no floating-point numbers, and statistics that a pass leaves
  as they are, because their layer is frozen, stay as they are.

  Args:
    apply_fn: from variables and a batch to the collections that a pass in
      training mode changes, as `mutable=` has them::

        lambda variables, batch: model.apply(
          variables, batch['inputs'], train=True, mutable=['batch_stats']
        )[1]

      Compiled once for every shape of a batch, and again if another call
      brings another function.
    variables: the collections of the model, `params` among them: those that the
      statistics are wanted for.
    batches: what `apply_fn` takes, at least one; their order makes no
      difference.

  Returns:
    The variables, with these collections computed anew.

  Raises:
    ValueError: if there is no batch, or if a collection holds something that
      doesn't change as running statistics do.

  References:
    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, `Averaging Weights Leads to
    Wider Optima and Better Generalization
    <https://arxiv.org/abs/1803.05407>`_, UAI 2018.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from optax_sam.flax import reestimate_batch_norm
  >>> model = nn.BatchNorm(use_running_average=False)
  >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0]])]
  >>> variables = model.init(jax.random.key(0), batches[0])
  >>> variables = reestimate_batch_norm(
  ...   lambda variables, batch: model.apply(
  ...     variables, batch, mutable=['batch_stats']
  ...   )[1],
  ...   variables,
  ...   batches,
  ... )
  >>> found = variables['batch_stats']
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
  if not names <= variables.keys():
    unknown = ', '.join(sorted(names - variables.keys()))
    msg = (
      f'apply_fn must return collections of variables, got {unknown}: leave it '
      f'out of mutable=.'
    )
    raise ValueError(msg)
  kept = {name: variables[name] for name in names}
  floats = jax.tree.map(tree_math.is_float, kept)
  run = lambda statistics, batch: partition.keep(
    floats, changed(variables, partition.fill(floats, statistics, kept), batch)
  )
  old = partition.keep(floats, kept)
  momenta = _momenta(lambda statistics: run(statistics, first), old)

  zeros = jax.tree.map(
    lambda leaf, m: leaf if m == _FROZEN else jnp.zeros_like(leaf), old, momenta
  )
  mean = tree_math.zeros_like(zeros)
  for count, batch in enumerate(itertools.chain([first], batches), start=1):
    mean = _add(mean, run(zeros, batch), count)

  def scale(leaf: jax.Array, mean: jax.Array, momentum: float) -> jax.Array:
    if momentum == _FROZEN:
      return leaf
    return (mean / (1 - momentum)).astype(leaf.dtype)

  found = jax.tree.map(scale, old, mean, momenta)
  return {**variables, **partition.fill(floats, found, kept)}


# The function is a part of what programs are known by, so that another
# evaluation with the same one finds them compiled.
@functools.partial(jax.jit, static_argnums=0)
def _changed(
  apply_fn: Any, variables: Variables, statistics: Any, batch: Any
) -> Any:
  return dict(apply_fn({**variables, **statistics}, batch))


@jax.jit
def _add(mean: Any, new: Any, count: Any) -> Any:
  def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + (y.astype(x.dtype) - x) / jnp.asarray(count).astype(x.dtype)

  return jax.tree.map(leaf, mean, new)


def _momenta(run: Callable[[Any], Any], statistics: Any) -> Any:
  """Returns the momentum of every leaf, that of 1 of those that don't move."""
  shifted = jax.tree.map(lambda leaf: leaf + _ODD, statistics)
  # Numbers alone are fetched: statistics may be split over processes.
  moves = jax.tree.map(
    lambda old, new: bool(jnp.any(old != new)), shifted, run(shifted)
  )
  probed = jax.tree.map(
    lambda leaf, moving: jnp.full_like(leaf, _HUGE) if moving else leaf,
    statistics,
    moves,
  )

  def momentum(path: Any, moving: bool, new: jax.Array) -> Any:
    if not moving:
      return _FROZEN
    share, highest = (float(f(new)) / _HUGE for f in (jnp.min, jnp.max))
    if max(abs(share), abs(highest)) <= _NOTHING:
      return 0.0
    if not (0 <= share < 1 and share == highest):
      name = '/'.join(partition.path_parts(path))
      msg = (
        f'apply_fn must return running statistics only, got {name}, which is '
        f'no running mean: leave its collection out of mutable=.'
      )
      raise ValueError(msg)
    # What was written down in so many digits, if that is what it was.
    written = round(share, 6)
    is_it = np.asarray(written, new.dtype) == np.asarray(share, new.dtype)
    return written if is_it else share

  return jax.tree_util.tree_map_with_path(momentum, moves, run(probed))
