"""Flat-LoRA: noise on frozen kernels while their adapters are trained."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam import validation
from optax_sam.trees import tree_math


def merge(
  kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float = 1.0
) -> jax.Array:
  r"""Returns the merged kernel :math:`W + s A B` of one layer.

  Args:
    kernel: :math:`W`, shape (..., inputs, outputs).
    a: :math:`A`, shape (..., inputs, rank).
    b: :math:`B`, shape (..., rank, outputs).
    scale: :math:`s`, often alpha / rank.

  Returns:
    An array like the kernel.

  >>> w, a, b = jnp.ones((2, 2)), jnp.ones((2, 1)), jnp.array([[0.0, 1.0]])
  >>> merge(w, a, b, scale=2.0).tolist()
  [[1.0, 3.0], [1.0, 3.0]]
  """
  _check_kernel(kernel, 'kernel')
  inner, outer = jnp.shape(a), jnp.shape(b)
  wanted = (*inner[:-1], *outer[-1:])
  if inner[-1:] != outer[-2:-1] or wanted != kernel.shape:
    msg = (
      f'a and b must have shapes (..., inputs, rank) and (..., rank, outputs) '
      f'for a kernel of shape {kernel.shape}, got {inner} and {outer}.'
    )
    raise ValueError(msg)
  change = jnp.asarray(scale, kernel.dtype) * (a @ b).astype(kernel.dtype)
  return kernel + change


def flat_noise(
  merged: Any,
  key: jax.Array | int,
  step: jax.typing.ArrayLike,
  *,
  total_steps: int | None,
  sigma: float = 0.05,
) -> Any:
  r"""Flat-LoRA: noise to add to frozen kernels, in proportion to their columns.

  .. math::
    \begin{align*}
      f &= (1 - \cos(\pi t / T)) / 2 \\
      N_{ij} &= f \sigma\, \|M_{:j}\| / \sqrt n \cdot z_{ij}
    \end{align*}

  :math:`M = W + s A B` is the merged kernel, :math:`n` its number of inputs and
  :math:`z` standard normal. The loss of a step is that with :math:`M + N` in
  place of :math:`M`; a step costs one gradient, of :math:`A` and :math:`B`.
  Column :math:`j` of a kernel has the weights of output :math:`j`; its norm is
  not differentiated::

    def layer(x, w, a, b, key, step):
      merged = optax_sam.lora.merge(w, a, b)
      noise = optax_sam.lora.flat_noise(merged, key, step, total_steps=1000)
      return x @ (w + noise) + x @ a @ b  # no gradient like w

  The noise is a function of the key and the step, so nothing is stored from
  step to step. If you scan over layers, apply `jax.checkpoint` to the layer:
  the backward pass then draws the noise again, and no noisy kernel is stored
  between the passes. Evaluate without noise.

  Args:
    merged: the merged kernel, with the outputs on the last axis, or a pytree of
      kernels, each with other noise. A convolution has its inputs on all other
      axes. A kernel with one axis has no noise.
    key: integer seed or typed key, the same on all devices; if a layer calls
      this function itself, the key of the layer, such as `fold_in(key, layer)`.
    step: :math:`t`, the step from 0. The first step has no noise. Micro-batches
      of a step share its noise.
    total_steps: :math:`T`, steps of the run, after which :math:`f` stays 1;
      None for :math:`f = 1` at all steps.
    sigma: :math:`\sigma`, at least 0. 0.05 is the paper's for language models;
      0.15 for CLIP, 0.1 for SDXL.

  Returns:
    The noise, like `merged`.

  .. note::
    The draw of leaf l is from `fold_in(fold_in(key, step), l)`. The authors'
    program adds the noise to :math:`W` in place and subtracts it afterwards,
    which does not restore half precision to the bit, and seeds it by the clock.

  References:
    Li et al., `Flat-LoRA: Low-Rank Adaptation over a Flat Loss Landscape
    <https://arxiv.org/abs/2409.14396>`_, ICML 2025.

  >>> merged = jnp.array([[3.0, 0.0], [4.0, 0.0]])
  >>> noise = flat_noise(merged, 0, 5, total_steps=10, sigma=0.1)
  >>> z = noise[:, 0] / (0.5 * 0.1 * 5 / 2**0.5)  # half of the ramp
  >>> draw = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 5), 0)
  >>> bool(jnp.allclose(z, jax.random.normal(draw, (2, 2))[:, 0]))
  True
  >>> float(jnp.linalg.norm(noise[:, 1]))
  0.0
  """
  validation.check_number('sigma', sigma, at_least=0)
  if total_steps is not None:
    validation.check_static_integer('total_steps', total_steps)
  draw = jax.random.fold_in(validation.as_key(key), step)
  leaves, structure = jax.tree.flatten(merged)
  found = []
  for number, leaf in enumerate(leaves):
    _check_kernel(leaf, 'merged')
    if leaf.ndim < 2:
      found.append(jnp.zeros_like(leaf))
      continue
    wide = tree_math.widen(jax.lax.stop_gradient(leaf))
    inputs = math.prod(leaf.shape[:-1])
    axes = tuple(range(leaf.ndim - 1))
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=axes, keepdims=True))
    ramp = _ramp(step, total_steps, wide.dtype)
    size = ramp * jnp.asarray(sigma / max(inputs, 1) ** 0.5, wide.dtype) * norm
    z = jax.random.normal(
      jax.random.fold_in(draw, number), leaf.shape, wide.dtype
    )
    found.append((size * z).astype(leaf.dtype))
  return structure.unflatten(found)


def _ramp(step: Any, total_steps: int | None, dtype: Any) -> jax.Array:
  if total_steps is None:
    return jnp.ones((), dtype)
  # The cosine would fall again after the run.
  done = jnp.minimum(jnp.asarray(step, dtype) / total_steps, 1)
  return (1 - jnp.cos(jnp.pi * done)) / 2


def _check_kernel(leaf: Any, name: str) -> None:
  if not hasattr(leaf, 'dtype') or not tree_math.is_float(leaf):
    msg = (
      f'{name} must hold floating-point arrays, got {leaf!r}: pass '
      f'dequantized kernels.'
    )
    raise ValueError(msg)
