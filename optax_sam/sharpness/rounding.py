"""Rounding of the weights to few bits, and the rise of the loss under it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.trees import tree_math


def rounding_rise(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  bits: int = 4,
  *,
  per: Literal['unit', 'leaf'] = 'unit',
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> float:
  """Returns the rise of the loss if the weights are rounded to few bits.

  It is `L(Q(w)) - L(w)`, with Q of `round_weights`: the sharpness that matters
  for quantization after training.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    bits: bits of a weight, from 2 to 16.
    per: 'unit' or 'leaf', see `round_weights`.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.

  Returns:
    The rise in the unit of the loss, of either sign; NaN if the loss is.

  >>> value = lambda w: jnp.sum((w - jnp.array([[0.9], [3.0]])) ** 2)
  >>> w = jnp.array([[0.9], [3.0]])
  >>> round(rounding_rise(value, w, bits=2), 2)  # (0, 3), of -3, 0 and 3
  0.81
  """
  rounded = round_weights(params, bits, per=per)
  loss = MeanLoss(value_fn, args, batches)
  return float(loss.value(rounded) - loss.value(params))


def round_weights(
  params: optax.Params, bits: int = 4, *, per: Literal['unit', 'leaf'] = 'unit'
) -> optax.Params:
  r"""Rounds weights to a uniform grid, symmetric about 0.

  .. math::
    Q(w) = s \operatorname{round}(w / s), \quad
      s = \max |w| / (2^{\text{bits} - 1} - 1)

  Leaves with fewer than two axes, biases and the scales of normalization
  layers, are unchanged. A tie is rounded to the even multiple of s.

  Args:
    params: a pytree of floating-point arrays.
    bits: bits of a weight, from 2 to 16: 4 gives multiples from -7 to 7.
    per: 'unit' if every output unit, an index of the last axis, has its own s;
      'leaf' if a leaf has one.

  Returns:
    Parameters with the same shapes and dtypes.

  >>> w = jnp.array([[0.9, 1.0], [3.0, -7.0]])
  >>> round_weights(w, bits=2).tolist()  # s = 3 and 7
  [[0.0, 0.0], [3.0, -7.0]]
  >>> round_weights(w, bits=4, per='leaf').tolist()  # s = 1
  [[1.0, 1.0], [3.0, -7.0]]
  """
  validation.check_static_integer('bits', bits, at_least=2)
  validation.check_number('bits', bits, at_most=16)
  validation.check_choice('per', per, ('unit', 'leaf'))
  return jax.tree.map(functools.partial(_rounded, bits=bits, per=per), params)


def _rounded(leaf: jax.Array, bits: int, per: str) -> jax.Array:
  if leaf.ndim < 2 or not tree_math.is_float(leaf):
    return leaf
  wide = tree_math.widen(leaf)
  axes = tuple(range(leaf.ndim - 1)) if per == 'unit' else None
  largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True)
  unit = largest / (2 ** (bits - 1) - 1)
  # A unit of zeros stays one.
  steps = jnp.round(wide / jnp.where(unit == 0, 1, unit))
  return (steps * unit).astype(leaf.dtype)
