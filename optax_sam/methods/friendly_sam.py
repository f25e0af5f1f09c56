"""Friendly SAM: perturbs along the noise of the gradient only."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import tree_math


class SubtractEmaState(NamedTuple):
  """State of `subtract_ema`: `ema`, and `started` after the first step."""

  ema: optax.Updates
  started: jax.Array


def subtract_ema(
  decay: float = 0.9,
  sigma: float = 1.0,
  *,
  order: Literal['paper', 'official'] = 'paper',
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Subtracts a moving average from the ascent gradient (Friendly SAM).

  Place it before a component that scales to a radius. It returns the `d` of
  `optax_sam.friendly_sam`, or 0 if the norm of `d` is at most
  `8 * eps * norm(g)`, which is rounding error.
  """
  validation.check_choice('order', order, ('paper', 'official'))
  validation.check_number('sigma', sigma, at_least=0, at_most=1)
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_float_dtype('accumulator_dtype', accumulator_dtype)
  if order == 'paper' and validation.is_python_number(decay) and decay == 0:
    msg = (
      f"decay must be above 0 with order='paper', got {decay!r}: the average "
      f"would be the gradient itself; write decay=0.9, or order='official'."
    )
    raise ValueError(msg)

  def init(params: optax.Params) -> SubtractEmaState:
    ema = tree_math.zeros_like(params, accumulator_dtype)
    return SubtractEmaState(ema, jnp.zeros((), bool))

  def mix(m: jax.Array, g: jax.Array) -> jax.Array:
    past = jnp.asarray(decay, m.dtype)
    return past * m + (1 - past) * g.astype(m.dtype)

  subtract = lambda g, m: tree_math.widen(g) - jnp.asarray(sigma, m.dtype) * m

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    averaged = devices.average_ascent(updates, **extra)
    before = tree_math.widen_like(state.ema, averaged)
    ema = jax.tree.map(mix, before, averaged)
    if order == 'official':
      first = optax.tree.cast_like(averaged, ema)
      ema = optax.tree.where(state.started, ema, first)
    noise = jax.tree.map(subtract, updates, ema if order == 'paper' else before)
    length, size = tree_math.norm(noise), tree_math.norm(updates)
    is_rounding = tree_math.is_negligible(length, size)
    noise = jax.tree.map(lambda d: jnp.where(is_rounding, 0, d), noise)
    ema = optax.tree.cast_like(ema, state.ema)
    state = SubtractEmaState(ema, jnp.ones((), bool))
    return optax.tree.cast_like(noise, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


@validation.method()
def friendly_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sigma: float = 1.0,
  decay: float = 0.9,
  order: Literal['paper', 'official'] = 'paper',
  accumulator_dtype: Any = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Friendly SAM (F-SAM): perturbs along the noise of the gradient only.

  .. math::
    m &\leftarrow \delta m + (1 - \delta)\, \bar g, \quad d = g - \sigma m \\
    \epsilon &= \rho\, d / (\|d\| + 10^{-12}) \\
    \tilde g &= \nabla L(w + \epsilon)

  The average :math:`m` estimates the full gradient, so :math:`d` is the noise
  of the batch. :math:`\bar g` is the average of :math:`g` over devices, and
  :math:`m = 0` at first. `order='official'` subtracts the old :math:`m`, with
  :math:`d = g` and :math:`m = \bar g` at the first step. If :math:`d` is only
  rounding, as with full or repeated batches, :math:`\epsilon = 0`.

  Args:
    rho: radius, at least 0, or a schedule of it by the step. 0.05 is the
      default of the authors' class; their CIFAR runs use 0.1 to 0.2.
    sigma: fraction of `m` to subtract, in [0, 1]: 0 is SAM; the paper is quoted
      with 1.
    decay: weight :math:`\delta` of the past, in [0, 1), above 0 with 'paper';
      the paper's value is unverified. 0.9 is the default of the authors' class;
      their runs have 0.95, since October 2024 0.6, `rho=0.2` and `sigma=1`.
    order: 'paper' subtracts the new `m`, 'official' the old `m`.
    accumulator_dtype: dtype of `m`; None for float32 or wider. In bfloat16 at
      `decay=0.9` an `m` within 4 % of the gradient may stop moving.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; state: `m`. It costs 2 gradients.

  .. note:: 'paper' follows restatements of the paper that agree, 'official' the
    authors' code nblt/F-SAM. Both average `g`; a popular port averages `d`. The
    first step of both orders is SAM's; then `m` differs for tens of steps. For
    equal `m` both have the same direction at `sigma=1`; below, the paper's
    `sigma` is the code's `sigma * decay / (1 - sigma * (1 - decay))`. For
    ASAM's radius, chain `subtract_ema` and `scale_to_adaptive_radius`.

  References:
    Li, Zhou, He, Cheng, Huang, `Friendly Sharpness-Aware Minimization
    <https://arxiv.org/abs/2403.12350>`_, CVPR 2024.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.friendly_sam(rho=0.5, decay=0.5), jnp.zeros(2)
  >>> state = tx.init(w)
  >>> for g in jnp.array([[4.0, 0.0], [4.0, 4.0]]):
  ...   u, state = tx.update(g, state, w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # along (4, 4) - (3, 2)
  [0.224, 0.447]
  """
  noise = subtract_ema(
    decay, sigma, order=order, accumulator_dtype=accumulator_dtype
  )
  perturbation = optax.chain(noise, scale_to_radius(rho))
  return compose(Choices(perturbation), mask, axis_name, sync_ascent)
