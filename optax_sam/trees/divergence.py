"""The mean divergence from a target: the auxiliary loss of SAF and MESA."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_sam import validation
from optax_sam.trees import tree_math


def mean(
  logits: jax.Array,
  targets: jax.Array,
  known: jax.Array,
  temperature: Any,
  weight: Any,
) -> jax.Array:
  """Returns `weight * tau**2 * mean KL`, 0 for rows that aren't known."""
  dtype = tree_math.wide_dtype(logits, targets)
  tau = jnp.asarray(temperature, dtype)

  def soften(values: jax.Array) -> jax.Array:
    # Rows without a target may contain anything, also NaN.
    return jnp.where(known[:, None], values, 0).astype(dtype) / tau

  expected = jax.lax.stop_gradient(jax.nn.log_softmax(soften(targets)))
  difference = expected - jax.nn.log_softmax(soften(logits))
  rows = jnp.sum(jnp.exp(expected) * difference, axis=-1)
  total = jnp.sum(jnp.where(known, rows, 0))
  return jnp.asarray(weight, dtype) * tau**2 * total / len(logits)


def check_settings(temperature: Any, weight: Any) -> None:
  """Raises a ValueError if a Python number is out of range."""
  validation.check_number('temperature', temperature, above=0)
  validation.check_number('weight', weight, at_least=0)


def check_integers(name: str, value: Any, shape: tuple[int, ...]) -> None:
  """Raises a ValueError unless there are integers of a shape."""
  dtype, found = jnp.result_type(value), jnp.shape(value)
  if found != shape or not jnp.issubdtype(dtype, jnp.integer):
    msg = (
      f'{name} must be integers of shape {shape}, got {dtype} of shape {found}.'
    )
    raise ValueError(msg)


def check_epoch(epoch: Any) -> None:
  """Raises a ValueError unless there is one integer, 0 or more if known."""
  check_integers('epoch', epoch, ())
  if not isinstance(epoch, jax.core.Tracer):
    validation.check_number('epoch', int(epoch), at_least=0)


def check_logits(logits: Any) -> None:
  """Raises a ValueError unless there is one row of numbers per example."""
  if logits.ndim != 2 or not tree_math.is_float(logits):
    msg = (
      f'logits must be floating-point numbers of shape (B, classes), got '
      f'{logits.dtype} of shape {logits.shape}.'
    )
    raise ValueError(msg)
