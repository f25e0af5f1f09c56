"""SWAD: a dense average of parameters over the flat part of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.trees import running_mean, tree_math
from optax_sam.trees.running_mean import RunningMean


class SwadState(NamedTuple):
  """State of `swad`; segments end at a validation and are numbered from 1.

  `current` is the mean over the current segment; once converged, over all after
  the last that counts. `earlier` are means over the last complete segments, the
  oldest first; once converged, the last one is over all that count. `losses`
  are the last ones, the oldest first, infinite at first. Segments with a loss
  up to `threshold` (infinite before convergence) count: `first_segment` to
  `last_segment` (0 before). The last `above` ones exceed it. `validations`
  counts until no later segment can count: `ended`.
  """

  current: RunningMean
  earlier: tuple[RunningMean, ...]
  losses: jax.Array
  threshold: jax.Array
  validations: jax.Array
  above: jax.Array
  first_segment: jax.Array
  last_segment: jax.Array
  ended: jax.Array


class Swad(NamedTuple):
  """The functions of `swad`.

  `accumulate` takes the parameters after a step, `validate` the validation
  loss; `init` returns the first state, `result` the averaged parameters.
  """

  init: Callable[[optax.Params], SwadState]
  accumulate: Callable[[SwadState, optax.Params], SwadState]
  validate: Callable[[SwadState, Any], SwadState]
  result: Callable[[optax.Params, SwadState], optax.Params]


def swad(
  *, n_converge: int = 3, n_tolerance: int = 6, tolerance: float = 0.3
) -> Swad:
  r"""Stochastic weight averaging densely (SWAD), in a range set by validation.

  The result is the mean of the parameters after every step of the segments from
  :math:`f` to :math:`\ell`. A segment ends at each validation; :math:`L_i` is
  the loss at the end of segment i = 1, 2, ..., and c is `n_converge`, r
  `n_tolerance`. SWAD converges at the first i, and ends at the first j, with:

  .. math::
    L_{i-c+1} &= \min(L_{i-c+1}, \ldots, L_i), \quad f = i - c + 1 \\
    \theta &= (1 + \text{tolerance})\, \text{mean}(L_{i-c+1}, \ldots, L_i) \\
    \theta &< \min(L_{j-r+1}, \ldots, L_j), \quad j-r+1 \ge f, \quad \ell = j-r

  If it never ends, :math:`\ell` is the last segment with :math:`L_\ell \le
  \theta`. Use SWAD outside of the chain::

    averaging = optax_sam.swad()
    state = averaging.init(params)
    for step in range(steps):
      params, opt_state = train_step(params, opt_state, next(batches))
      state = averaging.accumulate(state, params)
      if (step + 1) % 100 == 0:
        state = averaging.validate(state, validation_loss(params))
    params = averaging.result(params, state)

  Args:
    n_converge: c, at least 1: the oldest of c losses must be the smallest.
    n_tolerance: r, at least 1: r losses in a row must be above the threshold.
    tolerance: distance of the threshold :math:`\theta` above the mean, relative
      to it, at least 0; for losses of at least 0. 0.3 is the authors', who use
      0.2 on the data set VLCS.

  Returns:
    Four functions (`Swad`), which may be called inside `jax.jit`, `result` at
    any time: it returns `params` if there is no mean. State: `n_converge`
    averages, at least 2, float32 or wider.

  .. note:: The end is that of the authors' code. Its start is up to two
    segments earlier, as long as their losses are below the threshold, and it
    weights early segments two- or threefold; ours does not. Unverified: the
    indices of the paper. Our choices: without convergence the result is the
    mean of the last complete segment; a loss that is not finite is above any
    threshold, and nothing converges at it.

  References:
    Cha, Chun, Lee, Cho, Park, Lee, Park, `SWAD: Domain Generalization by
    Seeking Flat Minima <https://arxiv.org/abs/2102.08604>`_, NeurIPS 2021.

  >>> import jax.numpy as jnp, optax_sam
  >>> averaging = optax_sam.swad(n_converge=2, n_tolerance=1)
  >>> state = averaging.init(jnp.float32(0.0))
  >>> for w, loss in enumerate([3.0, 1.0, 1.2, 1.1, 5.0, 1.0]):
  ...   state = averaging.accumulate(state, jnp.float32(w))
  ...   state = averaging.validate(state, loss)
  >>> int(state.first_segment), int(state.last_segment)
  (2, 4)
  >>> float(averaging.result(jnp.float32(w), state))  # the mean of 1, 2 and 3
  2.0
  """
  validation.check_static_integer('n_converge', n_converge)
  validation.check_count('n_tolerance', n_tolerance)
  validation.check_number('tolerance', tolerance, at_least=0)

  def init(params: optax.Params) -> SwadState:
    inside = partition.Leaves.of(params).split(params)
    dtype = tree_math.accumulator_dtype(inside)
    mean, *means = map(running_mean.empty, [inside] * max(2, n_converge))
    limits = jnp.full(n_converge, jnp.inf, dtype), jnp.full((), jnp.inf, dtype)
    # Separate buffers: the same one can't be donated twice.
    counts = (jnp.zeros((), jnp.int32) for _ in range(4))
    ended = jnp.zeros((), bool)
    return SwadState._make([mean, tuple(means), *limits, *counts, ended])

  @jax.jit
  def accumulate(state: SwadState, params: optax.Params) -> SwadState:
    inside = partition.Leaves.of(params).split(params)
    add = lambda: running_mean.add(state.current, inside)
    current = jax.lax.cond(state.ended, lambda: state.current, add)
    return state._replace(current=current)

  @jax.jit
  def validate(state: SwadState, loss: Any) -> SwadState:
    loss = jnp.asarray(loss).astype(state.losses.dtype)
    loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
    losses = jnp.concatenate([state.losses[1:], loss[None]])
    number = tree_math.increment(state.validations)
    seen = state._replace(losses=losses, validations=number)
    converges = jnp.all(jnp.isfinite(losses) & (losses[0] <= losses))
    phase = jnp.where(state.first_segment > 0, 2, converges.astype(jnp.int32))
    judge = lambda s: _judge(s, loss, number)
    after = jax.lax.switch(phase, (_shift, _converge, judge), seen)
    return optax.tree.where(state.ended, state, after)

  def _shift(state: SwadState) -> SwadState:
    """Closes a segment before convergence and drops the oldest one."""
    empty = optax.tree.zeros_like(state.current)
    earlier = (*state.earlier[1:], state.current)
    return state._replace(current=empty, earlier=earlier)

  def _converge(state: SwadState) -> SwadState:
    """Restarts the means at the first segment that counts."""
    segments = (*state.earlier, state.current)[-n_converge:]
    first = state.validations - (n_converge - 1)
    state = state._replace(
      current=optax.tree.zeros_like(state.current),
      earlier=(*optax.tree.zeros_like(state.earlier[1:]), segments[0]),
      threshold=(1 + tolerance) * jnp.mean(state.losses),
      first_segment=first,
      last_segment=first,
    )
    for i, segment in enumerate(segments[1:], start=1):
      current = running_mean.merge(state.current, segment)
      judged = state._replace(current=current)
      judged = _judge(judged, state.losses[i], first + i)
      state = optax.tree.where(state.ended, state, judged)
    return state

  def _judge(state: SwadState, loss: jax.Array, segment: Any) -> SwadState:
    """Counts the segments up to `segment` if its loss is not above."""
    counts = loss <= state.threshold
    *earlier, mean = state.earlier
    counted = state._replace(
      current=optax.tree.zeros_like(state.current),
      earlier=(*earlier, running_mean.merge(mean, state.current)),
      last_segment=segment,
    )
    above = jnp.where(counts, 0, state.above + 1)
    state = optax.tree.where(counts, counted, state)
    return state._replace(above=above, ended=above >= n_tolerance)

  def result(params: optax.Params, state: SwadState) -> optax.Params:
    leaves = partition.Leaves.of(params)
    mean = running_mean.value(state.earlier[-1], leaves.split(params))
    return leaves.join(mean, params)

  return Swad(init, accumulate, validate, result)
