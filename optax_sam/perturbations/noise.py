"""Perturbations by the noise of the gradient."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import devices, numerics, validation


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
    ema = numerics.zeros_like(params, accumulator_dtype)
    return SubtractEmaState(ema, jnp.zeros((), bool))

  def mix(old: optax.Updates, new: optax.Updates) -> optax.Updates:
    def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
      past = jnp.asarray(decay, m.dtype)
      return past * m + (1 - past) * g.astype(m.dtype)

    return jax.tree.map(leaf, old, new)

  def subtract(updates: optax.Updates, ema: optax.Updates) -> optax.Updates:
    difference = jax.tree.map(
      lambda g, m: numerics.widen(g) - jnp.asarray(sigma, m.dtype) * m,
      updates,
      ema,
    )
    negligible = numerics.is_negligible(
      numerics.norm(difference), numerics.norm(updates)
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
    finite = jnp.isfinite(numerics.norm(averaged))
    former = numerics.widen_like(state.ema, averaged)
    ema = mix(former, averaged)
    if order == 'official':
      first = jax.tree.map(lambda g, m: g.astype(m.dtype), averaged, ema)
      ema = numerics.select(state.started, ema, first)
      noise = subtract(updates, former)
    else:
      noise = subtract(updates, ema)
    ema = numerics.cast_like(ema, state.ema)
    found = SubtractEmaState(ema, jnp.ones((), bool))
    return noise, numerics.select(finite, found, state)

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
