"""SWA: an equal average of the later parameters of a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.gradient import gradient_like
from optax_sam.engine.info import check_state, only_state
from optax_sam.trees import control_flow, running_mean, tree_math
from optax_sam.trees.running_mean import RunningMean


class SwaState(NamedTuple):
  """State of `swa`: `step_count` and the `average` of later parameters."""

  step_count: jax.Array
  average: RunningMean


@validation.method()
def swa(start: int, *, every: int = 1) -> optax.GradientTransformationExtraArgs:
  r"""Stochastic weight averaging (SWA): an equal average of later parameters.

  Updates are returned unchanged. Every `every` steps from step `start` on, the
  parameters after the step enter the average; at first :math:`n = 0`.

  .. math:: \bar w \leftarrow (n \bar w + w) / (n + 1), \quad n \leftarrow n + 1

  Read the average with `averaged_params`. Before you evaluate it, recompute the
  statistics of batch norm with `optax_sam.flax.reestimate_batch_norm`.

  Args:
    start: number of steps after which parameters first enter, at least 1.
    every: steps from one entry to the next, at least 1; often those of an
      epoch.

  Returns:
    A gradient transformation to place **last** in `optax.chain`, whose `update`
    needs `params`; state: the average, float32 or wider. It costs no gradient.

  .. note:: The authors average once an epoch, from epoch 161 of 200 to 300.
    Their learning rate is constant for half of the budget, falls to 0.05 at
    nine tenths, and stays there. If it decayed to 0, the averaged parameters
    would hardly differ.

  References:
    Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
    Generalization <https://arxiv.org/abs/1803.05407>`_, UAI 2018.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax.sgd(1.0), optax_sam.swa(start=2, every=2))
  >>> w = jnp.float32(0.0)
  >>> state = tx.init(w)
  >>> for _ in range(5):  # w = 1, 2, 3, 4, 5
  ...   updates, state = tx.update(jnp.float32(-1.0), state, w)
  ...   w = optax.apply_updates(w, updates)
  >>> float(optax_sam.averaged_params(w, state))  # of 2 and 4
  3.0
  """
  validation.check_count('start', start)
  validation.check_count('every', every)

  def init(params: optax.Params) -> SwaState:
    inside = partition.Leaves.of(params).split(params)
    return SwaState(jnp.zeros((), jnp.int32), running_mean.empty(inside))

  def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
    check_state(state, SwaState)
    if params is None:
      msg = (
        'params must be given: write tx.update(grads, opt_state, params); swa '
        'averages the updated parameters.'
      )
      raise ValueError(msg)
    leaves, count = partition.Leaves.of(params), state.step_count
    moves = leaves.split(gradient_like(updates, params))
    finite = tree_math.all_finite(moves)
    count = jnp.where(finite, tree_math.increment(count), count)
    enters = finite & (count >= start) & ((count - start) % every == 0)

    def add() -> RunningMean:
      move = lambda w, u: w if u is None else optax.apply_updates(w, u)
      w = jax.tree.map(move, leaves.split(params), moves)
      return running_mean.add(state.average, w)

    average = control_flow.cond(enters, add, lambda: state.average)
    return updates, SwaState(count, average)

  return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(params: optax.Params, opt_state: Any) -> optax.Params:
  """Returns the average of `swa`.

  Args:
    params: the parameters, for their dtypes and for leaves without an average.
    opt_state: state of an optimizer with exactly one `swa` in it, not inside
      `optax.masked` or `optax.partition`.

  Returns:
    The average, like `params`; `params` themselves while it is empty.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.swa(start=100), jnp.float32(3.0)
  >>> float(optax_sam.averaged_params(w, tx.init(w)))  # nothing has entered
  3.0
  """
  example = 'optax.chain(optax.sgd(0.1), optax_sam.swa(start=1000))'
  average = only_state(opt_state, SwaState, example).average
  leaves = partition.Leaves.of(params)
  return leaves.join(running_mean.value(average, leaves.split(params)), params)
