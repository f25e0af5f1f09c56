"""Friendly SAM: perturbs by the noise of the gradient alone."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math


class SubtractEmaState(NamedTuple):
  """State of `subtract_ema`.

  Attributes:
    ema: moving average of the gradient, like the parameters, float32 or wider
      unless a dtype was given.
    started: whether a gradient has entered it, a scalar bool.
  """

  ema: optax.Updates
  started: jax.Array


def subtract_ema(
  decay: float = 0.9,
  sigma: float = 1.0,
  *,
  order: Literal['paper', 'official'] = 'paper',
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Subtracts a moving average of the gradient: what is left is its noise.

  With `g` the ascent gradient, `gbar` its average over the devices, and `m`
  starting at 0::

    'paper':     m = decay * m + (1 - decay) * gbar;  d = g - sigma * m
    'official':  d = g - sigma * m, then the same m   # first step: d = g,
                                                      # m = gbar

  A `d` that is mere rounding against `g`, at most `8 * eps * norm(g)` long in
  float32 or wider, is returned as 0: scaled to a radius, it would be a
  direction without meaning. A gradient that isn't finite leaves `m` alone.

  Args:
    decay: weight of the past, in [0, 1); above 0 in the order of the paper.
      0.9 is the default of the authors' class; the paper's value could not be
      confirmed. See `optax_sam.friendly_sam`.
    sigma: share of the average that is subtracted, in [0, 1]; 0 leaves the
      gradient, 1 is what the paper's experiments are quoted with.
    order: 'paper' subtracts the average that holds the current gradient, as
      restatements of the paper agree; 'official' the one before it, as the
      authors' program nblt/F-SAM does.
    accumulator_dtype: dtype that `m` is kept in; None for float32 or wider.
      bfloat16 takes half of the memory and keeps 8 bits: with a `decay` of
      0.9 an `m` within 4 % of the gradient may not move any more.

  Returns:
    A perturbation, from the gradient to `d`, to be followed by one that gives
    it a length. Keeps `m` (`SubtractEmaState`).

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Li, Zhou, He, Cheng, Huang, `Friendly Sharpness-Aware Minimization
    <https://arxiv.org/abs/2403.12350>`_, CVPR 2024.

  What recurs at every step fades from the first entry, noise stays:

  >>> piece = subtract_ema(0.5)
  >>> state = piece.init(jnp.zeros(2))
  >>> for noise in (1.0, -1.0, 1.0, -1.0):
  ...   d, state = piece.update(jnp.array([4.0, noise]), state)
  ...   print([round(x, 3) for x in d.tolist()])
  [2.0, 0.5]
  [1.0, -0.75]
  [0.5, 0.625]
  [0.25, -0.688]
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

  def mix(old: optax.Updates, new: optax.Updates) -> optax.Updates:
    def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
      past = jnp.asarray(decay, m.dtype)
      return past * m + (1 - past) * g.astype(m.dtype)

    return jax.tree.map(leaf, old, new)

  def subtract(updates: optax.Updates, ema: optax.Updates) -> optax.Updates:
    difference = jax.tree.map(
      lambda g, m: tree_math.widen(g) - jnp.asarray(sigma, m.dtype) * m,
      updates,
      ema,
    )
    negligible = tree_math.is_negligible(
      tree_math.norm(difference), tree_math.norm(updates)
    )
    return jax.tree.map(
      lambda d, g: jnp.where(negligible, 0, d).astype(g.dtype),
      difference,
      updates,
    )

  @jax.jit
  def separate(
    updates: optax.Updates, averaged: optax.Updates, state: SubtractEmaState
  ) -> tuple[optax.Updates, SubtractEmaState]:
    finite = jnp.isfinite(tree_math.norm(averaged))
    former = tree_math.widen_like(state.ema, averaged)
    ema = mix(former, averaged)
    if order == 'official':
      first = jax.tree.map(lambda g, m: g.astype(m.dtype), averaged, ema)
      ema = tree_math.select(state.started, ema, first)
      noise = subtract(updates, former)
    else:
      noise = subtract(updates, ema)
    ema = tree_math.cast_like(ema, state.ema)
    found = SubtractEmaState(ema, jnp.ones((), bool))
    return noise, tree_math.select(finite, found, state)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    axis_name: Any = None,
    is_synced: bool = False,
    **_: Any,
  ) -> tuple[Any, Any]:
    del params
    averaged = devices.average(updates, None if is_synced else axis_name)
    return separate(updates, averaged, state)

  return optax.GradientTransformationExtraArgs(init, update)


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
  """Friendly SAM (F-SAM): perturbs by the noise of the gradient alone.

  With `g` the gradient of the batch at `w`, `gbar` its average over the
  devices, and `m` an estimate of the full gradient, 0 at first, which is
  subtracted::

    m       = decay * m + (1 - decay) * gbar
    d       = g - sigma * m          # order='official': with the m before, and
                                     # d = g, m = gbar at the first step
    epsilon = rho * d / (norm(d) + 1e-12)
    u       = gradient at w + epsilon

  A `d` that is mere rounding against `g`, as of full or repeated batches,
  gives `epsilon = 0`. The first step of both orders is SAM's. At `sigma = 1`
  both have the same direction for equal `m`; below, the paper's `sigma` is the
  program's `sigma * decay / (1 - sigma * (1 - decay))`. As `m` starts
  otherwise, the first tens of steps differ.

  The order of the paper rests on restatements of it that agree; the official
  one is that of the authors' program nblt/F-SAM. Both average the gradient as
  it is; a popular port averages `d` and isn't followed. For the radius of ASAM
  join `subtract_ema` and `scale_to_adaptive_radius`.

  Args:
    rho: radius in the unit of the parameters, a scalar of at least 0, or a
      schedule of it by the step. 0.05 is the default of the authors' class;
      their CIFAR runs use 0.1 to 0.2.
    sigma: share of `m` that is subtracted, in [0, 1]; 0 is SAM. 1 is what the
      paper's experiments are quoted with.
    decay: weight of the past, in [0, 1), above 0 in the order of the paper.
      0.9 is the default of the authors' class, whose runs use 0.6 and 0.95;
      the value of the paper could not be confirmed.
    order: 'paper' subtracts the `m` that holds the current gradient,
      'official' the one before it.
    accumulator_dtype: dtype that `m` is kept in; None for float32 or wider,
      bfloat16 for half of that memory.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn` or `grad_fn`. Cost: 2 gradients. Keeps `m`.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Li, Zhou, He, Cheng, Huang, `Friendly Sharpness-Aware Minimization
    <https://arxiv.org/abs/2403.12350>`_, CVPR 2024.

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.friendly_sam(rho=0.5, decay=0.5)
  >>> w = jnp.zeros(2)
  >>> state = tx.init(w)
  >>> for gradient in (jnp.array([4.0, 0.0]), jnp.array([4.0, 4.0])):
  ...   u, state = tx.update(gradient, state, w, grad_fn=lambda w: w)
  >>> [round(x, 3) for x in u.tolist()]  # along (4, 4) - (3, 2)
  [0.224, 0.447]
  """
  return sharpness_aware(
    optax.chain(
      subtract_ema(
        decay, sigma, order=order, accumulator_dtype=accumulator_dtype
      ),
      scale_to_radius(rho),
    ),
    mask=mask,
    axis_name=axis_name,
    sync_ascent=sync_ascent,
  )
