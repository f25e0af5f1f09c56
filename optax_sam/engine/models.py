"""What to write where a model stands for its parameters, or they for it.

Models of Flax NNX and Equinox are known by what they look like: no framework
is imported here.
"""

import functools
from typing import Any

import jax

_EQUINOX = (
  'split it by params, static = eqx.partition(model, eqx.is_inexact_array), '
  'and write value_fn=lambda p: loss_fn(eqx.combine(p, static), batch), or '
  'value_fn=optax_sam.equinox.equinox_value_fn(model, loss_fn, batch)'
)
_NNX = 'write value_fn=optax_sam.flax.nnx_value_fn(model, loss_fn, batch)'
# For a function that needs more arguments than the parameters.
OF_MODELS = (
  'Of a loss of a model, optax_sam.flax.nnx_value_fn and '
  'optax_sam.equinox.equinox_value_fn make such a function.'
)


def advice(params: Any) -> str:
  """Returns what to write instead of parameters that aren't all arrays."""
  bases = [base.__module__ for base in type(params).__mro__]
  is_model = any(name.startswith('equinox.') for name in bases)
  if is_model or any(callable(leaf) for leaf in jax.tree.leaves(params)):
    return f'if params is a whole model, {_EQUINOX}'
  return 'write jax.tree.map(jnp.asarray, params)'


def explained(function: Any) -> Any:
  """Returns a function of parameters that says if it wants a model."""

  @functools.wraps(function)
  def call(params: Any, *args: Any, **kwargs: Any) -> Any:
    try:
      return function(params, *args, **kwargs)
    except (AttributeError, TypeError) as error:
      hint = _hint(params, str(error))
      if hint is None:
        raise
      msg = f'the loss was given parameters, and needs a model: {hint}. {error}'
      raise ValueError(msg) from error

  return call


def _hint(params: Any, error: str) -> str | None:
  kind = type(params)
  if kind.__name__ == 'State' and kind.__module__.startswith('flax.nnx'):
    return _NNX if "'State' object" in error or 'in State' in error else None
  leaves = jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
  has_holes = any(leaf is None for leaf in leaves)
  return _EQUINOX if has_holes and 'NoneType' in error else None
