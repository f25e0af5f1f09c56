"""Reads what a sharpness-aware element did out of an optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import elements
from optax_sam.step import SharpnessAwareState

_ARRAYS = (jax.Array, np.ndarray, np.generic)


def metrics(opt_state: Any) -> dict[str, Any]:
  """Returns the scalars of a sharpness-aware element, wherever it sits.

  Args:
    opt_state: state of an optimizer that has a method of this library in it,
      in a chain or wrapped.

  Returns:
    A flat dict of arrays of shape (): `count`, the fields of
    `SharpnessAwareInfo` (`ascended`, `decided`, `second_gradients`,
    `ascent_norm`, `perturbed_loss`), and whatever scalars the choices keep,
    such as `policy/threshold` of `ae_sam` or `descent/ratio` of `look_sam`.
    Several elements are told apart by a number in front: `0/count`, `1/count`.

  Raises:
    ValueError: if there is no such element, or if it holds no arrays, as in
      an NNX optimizer.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax_sam.look_sam(), optax.sgd(0.1))
  >>> sorted(optax_sam.metrics(tx.init(jnp.ones(3))))
  ['ascended', 'ascent_norm', 'count', 'decided', 'descent/ratio',
  'perturbed_loss', 'policy/count', 'second_gradients']
  """
  found = elements.states(opt_state, SharpnessAwareState)
  if not found:
    msg = (
      'opt_state must hold the state of a method of optax_sam, but has none: '
      'put one first in the chain, as in optax.chain(optax_sam.sam(), '
      'optax.sgd(0.1)).'
    )
    raise ValueError(msg)
  if not all(isinstance(state.count, _ARRAYS) for state in found):
    msg = (
      f'opt_state must hold arrays, got a {type(found[0].count).__name__}: '
      f'for an NNX optimizer write metrics(nnx.as_pure(optimizer.opt_state)).'
    )
    raise ValueError(msg)
  if len(found) == 1:
    return _scalars(found[0])
  return {
    f'{position}/{name}': scalar
    for position, state in enumerate(found)
    for name, scalar in _scalars(state).items()
  }


def _scalars(state: SharpnessAwareState) -> dict[str, Any]:
  scalars = {'count': state.count, **state.info._asdict()}
  for choice in ('perturbation', 'policy', 'descent', 'selection'):
    scalars.update(_fields(getattr(state, choice), choice))
  return scalars


def _fields(state: Any, prefix: str) -> dict[str, Any]:
  """Returns the scalar fields of nested states, but no leaf of a tree."""
  if isinstance(state, _ARRAYS):
    is_key = jnp.issubdtype(state.dtype, jax.dtypes.prng_key)
    return {} if state.shape or is_key else {prefix: state}
  if hasattr(state, '_asdict'):
    children = state._asdict().items()
  elif isinstance(state, tuple):
    children = enumerate(state)
  else:
    return {}
  return {
    name: scalar
    for key, child in children
    for name, scalar in _fields(child, f'{prefix}/{key}').items()
  }
