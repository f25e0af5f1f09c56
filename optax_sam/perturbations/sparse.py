"""Perturbations of some of the entries only."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import chunks, devices, masks, numerics, validation
from optax_sam.objective import Objective

_FISHER_CHUNK = 16  # examples whose gradients are in memory at a time


class TopFisherState(NamedTuple):
  """State of `keep_top_fisher`.

  Attributes:
    count: number of steps so far, a scalar int32.
    mask: which entries are perturbed, bools like the parameters.
  """

  count: jax.Array
  mask: Any


class DynamicState(NamedTuple):
  """State of `keep_dynamic`.

  Attributes:
    count: number of steps so far, a scalar int32.
    mask: which entries are perturbed, bools like the parameters.
    key: typed PRNG key that all draws derive from.
  """

  count: jax.Array
  mask: Any
  key: jax.Array


def keep_top_fisher(
  sparsity: float = 0.5,
  *,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
) -> optax.GradientTransformationExtraArgs:
  """Keeps the entries with the largest empirical Fisher information: SSAM-F.

  Every `refresh_every` steps, before the mask is used, with `n` the smaller of
  `num_samples` and the batch size and `N` the number of entries::

    F    = sum over the first n examples of (gradient of their loss at w)^2
    mask = the floor((1 - sparsity) * N) largest of F     # ties by position

  A score that isn't finite leaves the mask as it was.

  Args:
    sparsity: share of the entries that is not perturbed, in [0, 1].
    num_samples: number of examples, taken from the front of the batch.
    refresh_every: number of steps from one mask to the next, at least 1.
    pattern: 'global', or 'n:m' such as '2:4' for the n largest of every m
      consecutive inputs of a unit, whatever `sparsity` says.

  The memory of 16 examples' gradients is needed at a refresh. On several
  devices each sums over its own share of the examples.
  """
  masks.check_sparsity(sparsity)
  validation.check_static_integer('num_samples', num_samples)
  validation.check_count('refresh_every', refresh_every)
  grouping = masks.parse_pattern(pattern)

  def init(params: optax.Params) -> TopFisherState:
    everything = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    return TopFisherState(jnp.zeros((), jnp.int32), everything)

  def choose(scores: Any) -> Any:
    if grouping is not None:
      return jax.tree.map(lambda s: masks.n_of_m(s, *grouping), scores)
    kept = masks.num_kept(sparsity, numerics.size(scores))
    return masks.largest(jax.tree.map(masks.rank_bits, scores), kept)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    objective: Objective | None = None,
    axis_name: Any = None,
    **_: Any,
  ) -> tuple[Any, TopFisherState]:
    if objective is None:
      msg = (
        'keep_top_fisher needs the gradients of single examples: use it in '
        'the perturbation of optax_sam.sharpness_aware.'
      )
      raise ValueError(msg)

    def renew() -> Any:
      scores = _fisher_information(objective, params, num_samples, axis_name)
      return _where_finite(scores, choose(scores), state.mask)

    mask = _on_refresh(state.count, refresh_every, renew, lambda: state.mask)
    kept = _keep(mask, updates)
    return kept, TopFisherState(numerics.increment(state.count), mask)

  return optax.GradientTransformationExtraArgs(init, update)


def keep_dynamic(
  sparsity: float = 0.5,
  *,
  drop_rate: float = 0.5,
  refresh_every: int,
  total_steps: int,
  key: jax.Array | int,
  drop: Literal['gradient', 'weight', 'random'] = 'gradient',
  growth: Literal['gradient', 'weight', 'random'] = 'random',
) -> optax.GradientTransformationExtraArgs:
  """Keeps entries by dynamic sparse training, dropping the flattest: SSAM-D.

  `a = floor((1 - sparsity) * N)` of the N entries are active, at first at
  random. At every step the mask is used as it is; then, every `refresh_every`
  steps, with `t` the step, counted from 0, and `T = total_steps`::

    r = drop_rate / 2 * (1 + cos(pi * min(t / T, 1)))
    d = min(floor(a * r), N - a)
    the d active entries with the smallest abs(g) are dropped,
    d of those that were inactive are grown, uniformly at random

  An update of zeros, as of a gradient that isn't finite, leaves the mask.

  Args:
    sparsity: share of the entries that is not perturbed, in [0, 1].
    drop_rate: share of the active entries that the first refresh moves, in
      (0, 1].
    refresh_every: number of steps from one mask to the next, at least 1.
    total_steps: T, number of steps of the whole training, at least 1.
    key: integer seed or typed key, the same on all devices.
    drop: by what the smallest are dropped: 'gradient', 'weight' or 'random'.
    growth: by what the largest are grown, likewise.
  """
  masks.check_sparsity(sparsity)
  validation.check_number('drop_rate', drop_rate, above=0, at_most=1)
  validation.check_count('refresh_every', refresh_every)
  validation.check_count('total_steps', total_steps)
  validation.check_key(key)
  sources = ('gradient', 'weight', 'random')
  validation.check_choice('drop', drop, sources)
  validation.check_choice('growth', growth, sources)

  def init(params: optax.Params) -> DynamicState:
    typed = validation.as_key(key)
    active = masks.num_kept(sparsity, numerics.size(params))
    mask = masks.largest(masks.random_bits(typed, params), active)
    return DynamicState(jnp.zeros((), jnp.int32), mask, typed)

  def num_moved(count: jax.Array, size: int) -> jax.Array:
    active = masks.num_kept(sparsity, size)
    dtype = jnp.float32
    progress = jnp.minimum(
      count.astype(dtype) / jnp.asarray(total_steps, dtype), 1.0
    )
    rate = jnp.asarray(drop_rate, dtype) / 2 * (1 + jnp.cos(jnp.pi * progress))
    moved = jnp.floor(active * rate).astype(jnp.int32)
    return jnp.minimum(moved, size - active)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    axis_name: Any = None,
    is_synced: bool = False,
    **_: Any,
  ) -> tuple[Any, DynamicState]:
    def ranks(source: str, draw: int, gradient: Any) -> Any:
      if source == 'random':
        step_key = jax.random.fold_in(state.key, state.count)
        return masks.random_bits(jax.random.fold_in(step_key, draw), updates)
      scores = gradient if source == 'gradient' else params
      return jax.tree.map(lambda x: masks.rank_bits(jnp.abs(x)), scores)

    def renew() -> Any:
      gradient = devices.average(updates, None if is_synced else axis_name)
      moved = num_moved(state.count, numerics.size(updates))
      mask = masks.drop_and_grow(
        state.mask, ranks(drop, 0, gradient), ranks(growth, 1, gradient), moved
      )
      usable = numerics.is_usable(numerics.norm(gradient))
      return numerics.select(usable, mask, state.mask)

    mask = _on_refresh(state.count, refresh_every, renew, lambda: state.mask)
    new_state = DynamicState(numerics.increment(state.count), mask, state.key)
    return _keep(state.mask, updates), new_state

  return optax.GradientTransformationExtraArgs(init, update)


def keep_n_of_m(n: int, m: int) -> optax.GradientTransformation:
  """Keeps the n largest of every m consecutive inputs of a unit, in size.

  A leaf with fewer than two axes, or whose number of inputs (the product of
  all axes but the last) m doesn't divide, is kept whole.

  >>> piece = keep_n_of_m(1, 2)
  >>> piece.update(jnp.array([[3.0], [-4.0]]), piece.init(None))[0].tolist()
  [[0.0], [-4.0]]
  """
  masks.parse_pattern(f'{n}:{m}')
  return optax.stateless(
    lambda updates, _: jax.tree.map(
      lambda g: jnp.where(masks.n_of_m(jnp.abs(g), n, m), g, 0), updates
    )
  )


@jax.jit
def _keep(mask: Any, updates: Any) -> Any:
  return jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, updates)


def _on_refresh(
  count: jax.Array,
  every: Any,
  renew: Callable[[], Any],
  keep: Callable[[], Any],
) -> Any:
  """Branches inside a traced program, and in Python outside of one."""
  due = count % jnp.asarray(every, jnp.int32) == 0
  if isinstance(due, jax.core.Tracer):
    return jax.lax.cond(due, renew, keep)
  return renew() if due else keep()


def _where_finite(scores: Any, on_true: Any, on_false: Any) -> Any:
  finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(scores)]
  every = jnp.all(jnp.stack(finite)) if finite else jnp.ones((), bool)
  return numerics.select(every, on_true, on_false)


def _fisher_information(
  objective: Objective, params: Any, num_samples: int, axis_name: Any
) -> Any:
  """Sums the squared gradients of the first examples over all devices."""
  if axis_name is not None:
    num_samples = math.ceil(num_samples / jax.lax.psum(1, axis_name))
  samples = objective.rows(slice(num_samples))
  local = devices.as_local(params, axis_name)

  def squared_gradient(row: Any) -> Any:
    one = jax.tree.map(lambda x: x[None], row)
    _, gradient = samples.on(one).value_and_grad(local)
    return jax.tree.map(lambda g: jnp.square(numerics.widen(g)), gradient)

  def total(rows: Any) -> Any:
    squares = jax.vmap(squared_gradient)(rows)
    return jax.tree.map(lambda s: jnp.sum(s, axis=0), squares)

  scores = chunks.sum_over_chunks(
    total, samples.batch, _FISHER_CHUNK, axis_name
  )
  return scores if axis_name is None else jax.lax.psum(scores, axis_name)
