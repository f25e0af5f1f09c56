"""Advice in error messages if a model is passed for parameters, or vice versa.

Models of Flax NNX and Equinox are recognized without importing a framework.
"""

import functools
from typing import Any

import jax

_EQUINOX = (
  'split it by params, static = eqx.partition(model, eqx.is_inexact_array), '
  'and write value_fn=lambda p: loss_fn(eqx.combine(p, static), batch), or '
  'value_fn=optax_sam.equinox.equinox_value_fn(model, loss_fn, batch); to '
  'make_step pass lambda p, batch: loss_fn(eqx.combine(p, static), batch)'
)
_NNX = (
  'write value_fn=optax_sam.flax.nnx_value_fn(model, loss_fn, batch); to '
  'make_step pass lambda p, batch: loss_fn(nnx.merge(graph, p), batch), with '
  'graph, p = nnx.split(model)'
)
# For a function that needs more arguments than the parameters.
OF_MODELS = (
  'For the loss of a model, optax_sam.flax.nnx_value_fn and '
  'optax_sam.equinox.equinox_value_fn build such a function.'
)


def advice(params: Any) -> str:
  """Returns advice for parameters that aren't all arrays."""
  bases = [base.__module__ for base in type(params).__mro__]
  is_model = any(name.startswith('equinox.') for name in bases)
  if is_model or any(callable(leaf) for leaf in jax.tree.leaves(params)):
    return f'if params is a whole model, {_EQUINOX}'
  return 'write jax.tree.map(jnp.asarray, params)'


def explained(function: Any) -> Any:
  """Wraps a function of parameters, to explain errors if it takes a model."""

  @functools.wraps(function)
  def call(params: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return function(params, *args, **kwargs)
    except (AttributeError, TypeError) as error:
      hint = _hint(params, str(error))
      if hint is None:
        raise
      msg = f'the loss got parameters, but needs a model: {hint}. {error}'
      raise ValueError(msg) from error

  return call


def _hint(params: Any, error: str) -> str | None:
  kind = type(params)
  if kind.__name__ == 'State' and kind.__module__.startswith('flax.nnx'):
    return _NNX if "'State' object" in error or 'in State' in error else None
  leaves = jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
  has_holes = any(leaf is None for leaf in leaves)
  return _EQUINOX if has_holes and 'NoneType' in error else None
