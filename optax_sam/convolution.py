"""A convolution whose gradient is fast inside conditionals and loops on CPU."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_Arrays = tuple[jax.Array, jax.Array]


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **settings: Any,
) -> jax.Array:
  """Convolves like `jax.lax.conv_general_dilated`, with fast gradients on CPU.

  Inside `jax.lax.cond` (methods that skip), `jax.lax.scan` or `jax.lax.map`
  (micro-batches), XLA's CPU backend does not use its fast kernels for gradients
  of convolutions, and is many times slower. This function writes the
  gradients as convolutions with the order of dimensions of these kernels: dk
  from dy and x with batch and features swapped, dx from dy and the flipped k
  with input and output features swapped.

  Its values, and on other devices its gradients, are those of
  `jax.lax.conv_general_dilated`. Forward mode (`jax.jvp`) works on its
  gradients only. In Flax write
  `nn.Conv(..., conv_general_dilated=optax_sam.conv_general_dilated)`.

  Args:
    lhs: the inputs, of rank 3 or more.
    rhs: the kernel, of the same rank and dtype.
    window_strides: stride of each spatial dimension.
    padding: `SAME`, `VALID`, or the entries before and after each dimension.
    **settings: further arguments of `jax.lax.conv_general_dilated`, which is
      used for dilations, groups and dimensions other than `NHWC`, `HWIO`,
      `NHWC` (with any number of spatial dimensions).

  Returns:
    The convolution.

  >>> signal = jnp.arange(4.0).reshape(1, 4, 1)  # batch, space, features
  >>> kernel = jnp.ones((2, 1, 1))  # space, input features, output features
  >>> y = conv_general_dilated(
  ...   signal, kernel, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
  ... )
  >>> print(y.ravel())
  [1. 3. 5.]
  """
  settings = {name: x for name, x in settings.items() if x not in (None, 1)}
  numbers = lax.conv_dimension_numbers(
    lhs.shape, rhs.shape, settings.pop('dimension_numbers', None)
  )
  ones = (1,) * (lhs.ndim - 2)
  for dilation in ('lhs_dilation', 'rhs_dilation'):
    if tuple(settings.get(dilation, ones)) == ones:
      settings.pop(dilation, None)
  if numbers != _in_order(lhs.ndim) or settings.keys() - {'precision'}:
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, dimension_numbers=numbers, **settings
    )
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:-1], rhs.shape[:-2], window_strides, padding
    )
  pairs = [(int(low), int(high)) for low, high in padding]
  return _convolution(tuple(window_strides), pairs, **settings)(lhs, rhs)


def _in_order(rank: int) -> lax.ConvDimensionNumbers:
  """Returns the dimensions of XLA's fast kernels."""
  space = tuple(range(1, rank - 1))
  ends = (0, rank - 1, *space)
  kernel = (rank - 1, rank - 2, *range(rank - 2))
  return lax.ConvDimensionNumbers(ends, kernel, ends)


def _convolution(
  strides: tuple[int, ...], padding: list[tuple[int, int]], **precision: Any
) -> Any:
  """Returns a convolution with gradients in the order of the fast kernels."""
  plain = functools.partial(_plain, **precision)

  @jax.custom_vjp
  def convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return plain(lhs, rhs, strides, padding)

  def forward(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, _Arrays]:
    # Not `convolve`, which forward mode can't differentiate.
    return plain(lhs, rhs, strides, padding), (lhs, rhs)

  def by_lax(lhs: jax.Array, rhs: jax.Array, cotangent: jax.Array) -> _Arrays:
    numbers = _in_order(lhs.ndim)
    conv = lambda lhs, rhs: lax.conv_general_dilated(
      lhs, rhs, strides, padding, dimension_numbers=numbers, **precision
    )
    return jax.vjp(conv, lhs, rhs)[1](cotangent)

  def in_order(lhs: jax.Array, rhs: jax.Array, cotangent: jax.Array) -> _Arrays:
    to_lhs, to_rhs = _paddings(lhs, rhs, cotangent, strides, padding)
    ones = (1,) * len(strides)
    flipped = jnp.flip(rhs, axis=tuple(range(rhs.ndim - 2)))
    swapped = jnp.swapaxes(flipped, -1, -2)
    of_lhs = plain(cotangent, swapped, ones, to_lhs, lhs_dilation=strides)
    # The sum over the batch replaces the one over input features.
    images, kernel = jnp.swapaxes(lhs, 0, -1), jnp.moveaxis(cotangent, 0, -2)
    of_rhs = plain(images, kernel, ones, to_rhs, rhs_dilation=strides)
    return of_lhs, jnp.moveaxis(of_rhs, 0, -2)

  def backward(operands: _Arrays, cotangent: jax.Array) -> _Arrays:
    # Other devices gain nothing by the order, and TPUs would copy the inputs.
    return lax.platform_dependent(
      *operands, cotangent, cpu=in_order, default=by_lax
    )

  convolve.defvjp(forward, backward)
  return convolve


def _plain(
  lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
  """Convolves in the order of the fast kernels."""
  if math.prod(rhs.shape[:-2]) >= math.prod(lhs.shape[1:-1]):
    # XLA would use the smaller one as the kernel, in another order.
    dilation = settings.pop('lhs_dilation', (1,) * len(padding))
    pads = [(*pair, d - 1) for pair, d in zip(padding, dilation, strict=True)]
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    lhs = lax.optimization_barrier(lhs)
    padding = [(0, 0)] * len(padding)
  numbers = _in_order(lhs.ndim)
  return lax.conv_general_dilated(
    lhs, rhs, strides, padding, dimension_numbers=numbers, **settings
  )


def _paddings(
  lhs: jax.Array, rhs: jax.Array, result: jax.Array, strides: Any, padding: Any
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
  """Returns the paddings of the gradients of the inputs and of the kernel."""
  sizes = zip(lhs.shape[1:-1], rhs.shape[:-2], result.shape[1:-1], strict=True)
  to_lhs, to_rhs = [], []
  for (size, kernel, length), stride, (low, _) in zip(
    sizes, strides, padding, strict=True
  ):
    spread = (length - 1) * stride + 1
    low_of_lhs = kernel - 1 - low
    to_lhs.append((low_of_lhs, size + kernel - 1 - spread - low_of_lhs))
    to_rhs.append((low, kernel - 1 + spread - size - low))
  return to_lhs, to_rhs
