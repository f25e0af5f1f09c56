"""A convolution whose gradient is fast inside conditionals and loops on CPU."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_Pairs = tuple[tuple[int, int], ...]


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **settings: Any,
) -> jax.Array:
  """Convolves like `jax.lax.conv_general_dilated`, its gradient fast on CPU.

  XLA's CPU backend brings a convolution into the order of dimensions that its
  fast kernels take only where it stands in the outermost computation of a
  program. Gradients of convolutions are in another order, so that inside of
  `jax.lax.cond` (a method that skips), `jax.lax.scan` or `jax.lax.map` (one
  that takes micro-batches) they run some twenty times slower. Here the
  gradients are written in that order to begin with::

    y = conv(x, k)
    dk = conv(x with batch and features swapped, dy)
    dx = conv(dy, k flipped, with input and output features swapped)

  The numbers are those of `jax.lax.conv_general_dilated`, and on other
  devices its gradients, too. Flax takes it as an argument, in linen as
  in NNX: `nn.Conv(..., conv_general_dilated=optax_sam.conv_general_dilated)`.

  >>> import jax.numpy as jnp, optax_sam
  >>> signal = jnp.arange(4.0).reshape(1, 4, 1)  # batch, space, features
  >>> kernel = jnp.ones((2, 1, 1))  # space, input features, output features
  >>> y = optax_sam.conv_general_dilated(
  ...   signal, kernel, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
  ... )
  >>> print(y.ravel())
  [1. 3. 5.]

  The rule of gradients in reverse mode is all that it adds: forward mode
  (`jax.jvp`, `jax.linearize`) works on its gradients, not on itself.

  Args:
    lhs: the inputs, of rank 3 or more.
    rhs: the kernel, of the same rank and dtype.
    window_strides: stride of each dimension in space.
    padding: `SAME`, `VALID`, or the entries before and after each dimension.
    **settings: what else `jax.lax.conv_general_dilated` takes. A convolution
      that is dilated or in groups, or whose dimensions are not `NHWC`, `HWIO`,
      `NHWC` (of any number of dimensions in space), is left to it entirely.

  Returns:
    The convolution.
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
  pairs = tuple((int(low), int(high)) for low, high in padding)
  return _convolution(
    tuple(window_strides), pairs, settings.get('precision'), lhs, rhs
  )


def _in_order(rank: int) -> lax.ConvDimensionNumbers:
  """The dimensions that XLA's fast kernels take."""
  space = tuple(range(1, rank - 1))
  ends = (0, rank - 1, *space)
  kernel = (rank - 1, rank - 2, *range(rank - 2))
  return lax.ConvDimensionNumbers(ends, kernel, ends)


def _plain(
  lhs: jax.Array,
  rhs: jax.Array,
  padding: _Pairs,
  precision: Any,
  *,
  window_strides: tuple[int, ...] | None = None,
  lhs_dilation: tuple[int, ...] | None = None,
  rhs_dilation: tuple[int, ...] | None = None,
) -> jax.Array:
  ones = (1,) * len(padding)
  if math.prod(rhs.shape[:-2]) >= math.prod(lhs.shape[1:-1]):
    # XLA would have the smaller one for the kernel, in another order.
    inner = [d - 1 for d in lhs_dilation or ones]
    pads = [(*pair, n) for pair, n in zip(padding, inner, strict=True)]
    around = ((0, 0, 0), *pads, (0, 0, 0))
    lhs = lax.optimization_barrier(
      lax.pad(lhs, jnp.zeros((), lhs.dtype), around)
    )
    padding, lhs_dilation = ((0, 0),) * len(padding), None
  return lax.conv_general_dilated(
    lhs,
    rhs,
    window_strides or ones,
    padding,
    lhs_dilation,
    rhs_dilation,
    _in_order(lhs.ndim),
    precision=precision,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _convolution(
  strides: tuple[int, ...],
  padding: _Pairs,
  precision: Any,
  lhs: jax.Array,
  rhs: jax.Array,
) -> jax.Array:
  return _plain(lhs, rhs, padding, precision, window_strides=strides)


def _forward(
  strides: tuple[int, ...],
  padding: _Pairs,
  precision: Any,
  lhs: jax.Array,
  rhs: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # Not the function above, which forward mode could not differentiate again.
  y = _plain(lhs, rhs, padding, precision, window_strides=strides)
  return y, (lhs, rhs)


def _backward(
  strides: tuple[int, ...],
  padding: _Pairs,
  precision: Any,
  operands: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  in_order = functools.partial(_in_order_backward, strides, padding, precision)
  # Elsewhere it would gain nothing, and cost TPUs a copy of the inputs.
  by_jax = functools.partial(_backward_by_jax, strides, padding, precision)
  return lax.platform_dependent(
    *operands, cotangent, cpu=in_order, default=by_jax
  )


def _backward_by_jax(
  strides: tuple[int, ...],
  padding: _Pairs,
  precision: Any,
  lhs: jax.Array,
  rhs: jax.Array,
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def forward(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      lhs,
      rhs,
      strides,
      padding,
      dimension_numbers=_in_order(lhs.ndim),
      precision=precision,
    )

  return jax.vjp(forward, lhs, rhs)[1](cotangent)


def _in_order_backward(
  strides: tuple[int, ...],
  padding: _Pairs,
  precision: Any,
  lhs: jax.Array,
  rhs: jax.Array,
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  sizes = zip(
    strides,
    padding,
    lhs.shape[1:-1],
    rhs.shape[:-2],
    cotangent.shape[1:-1],
    strict=True,
  )
  to_lhs, to_rhs = [], []
  for stride, (low, _), size, kernel, result in sizes:
    spread = (result - 1) * stride + 1
    low_of_lhs = kernel - 1 - low
    to_lhs.append((low_of_lhs, size + kernel - 1 - spread - low_of_lhs))
    to_rhs.append((low, kernel - 1 + spread - size - low))
  flipped = jnp.flip(rhs, axis=tuple(range(rhs.ndim - 2)))
  to_inputs = _plain(
    cotangent,
    jnp.swapaxes(flipped, -1, -2),
    tuple(to_lhs),
    precision,
    lhs_dilation=strides,
  )
  # The sum over the batch takes the place of the one over input features.
  to_kernel = _plain(
    jnp.swapaxes(lhs, 0, -1),
    jnp.moveaxis(cotangent, 0, -2),
    tuple(to_rhs),
    precision,
    rhs_dilation=strides,
  )
  return to_inputs, jnp.moveaxis(to_kernel, 0, -2)


_convolution.defvjp(_forward, _backward)
