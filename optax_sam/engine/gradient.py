"""Gradients as they come in: like the parameters, or None where there is none.

A leaf without a gradient is left alone: no norm, no decision and no state of
this step knows it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.engine.partition import fill, keep, name_of, with_gradient
from optax_sam.trees import tree_math


def gradient_like(
  updates: Any, params: optax.Params, name: str = 'updates'
) -> Any:
  """Returns a gradient with one entry for each leaf of the parameters.

  Args:
    updates: a gradient. None, in the place of a leaf or of many, says that
      there is none.
    params: the parameters.
    name: what the user calls the gradient.

  Returns:
    A tree like `params`, with None where a leaf has no gradient.

  Raises:
    ValueError: if structures, shapes or types differ, with the path.
  """

  def spread(entry: Any, below: Any) -> Any:
    if entry is None:
      return jax.tree.map(lambda _: None, below)
    if not jax.tree_util.all_leaves([below]):
      raise ValueError
    return entry

  structure = jax.tree.structure(params)
  if jax.tree.structure(updates) != structure:
    try:
      updates = jax.tree.map(
        spread, updates, params, is_leaf=lambda node: node is None
      )
    except (ValueError, TypeError, KeyError):
      raise ValueError(_difference(updates, params, name)) from None
  leaves = structure.flatten_up_to(updates)
  for (path, leaf), entry in zip(
    jax.tree_util.tree_leaves_with_path(params), leaves, strict=True
  ):
    # Of other leaves jax.grad has gradients of its own, such as float0.
    if entry is not None and tree_math.is_float(leaf):
      _check_entry(entry, leaf, name, name_of(path))
  if leaves and all(entry is None for entry in leaves):
    msg = f'{name} must hold a gradient, got None for all of the parameters.'
    raise ValueError(msg)
  return updates


def _check_entry(entry: Any, leaf: Any, name: str, path: str) -> None:
  at = f' at {path!r}' if path else ''
  if not isinstance(entry, (jax.Array, np.ndarray, np.generic, float)):
    msg = (
      f'{name} must hold arrays, got a {type(entry).__name__}{at}: write '
      f'jnp.asarray of it.'
    )
  elif jnp.shape(entry) != leaf.shape:
    msg = (
      f'{name} must have the shapes of the parameters, got '
      f'{jnp.shape(entry)} for {leaf.shape}{at}.'
    )
    if jnp.shape(entry)[1:] == leaf.shape:
      msg += ' Of gradients of single examples, pass the mean.'
  elif not jnp.issubdtype(jnp.result_type(entry), jnp.floating):
    msg = (
      f'{name} must be real gradients, got {jnp.result_type(entry)} for '
      f'parameters of {leaf.dtype}{at}: write jax.grad of a real loss.'
    )
  else:
    return
  raise ValueError(msg)


def _difference(updates: Any, params: optax.Params, name: str) -> str:
  """Says where the structures of two trees differ first."""
  paths = jax.tree_util.tree_leaves_with_path
  kind = lambda x: 'n array' if hasattr(x, 'dtype') else f' {type(x).__name__}'
  ours = {name_of(path): kind(leaf) for path, leaf in paths(updates)}
  wanted = [name_of(path) for path, _ in paths(params)]
  extra = [path for path in ours if path not in wanted]
  missing = [path for path in wanted if path not in ours]
  found = (
    f'got a{ours[extra[0]]} at {extra[0]!r}, where they have no leaf'
    if extra
    else f'got nothing at {missing[0]!r}'
    if missing
    else f'got {jax.tree.structure(updates)}'
  )
  return (
    f'{name} must have the structure of the parameters, {found}: pass what '
    f'jax.grad returns for these params.'
  )


def without_absent(
  updates: Any, state: Any, params: optax.Params
) -> tuple[Any, Callable[[Any], Any]]:
  """Leaves out of a state what belongs to leaves without a gradient.

  Args:
    updates: the gradient, from `gradient_like`.
    state: a state that `init` made of all parameters.
    params: the parameters.

  Returns:
    (the state for this step, function from the next such state to one of all
    parameters, in which what was left out is unchanged).
  """
  present = with_gradient(updates, params)
  if present is None:
    return state, lambda new: new
  structure = jax.tree.structure(params)
  shapes = [leaf.shape for leaf in jax.tree.leaves(params)]

  def is_like(node: Any) -> bool:
    try:
      entries = structure.flatten_up_to(node)
    except (ValueError, TypeError, KeyError):
      return False
    pairs = zip(entries, shapes, strict=True)
    return all(
      isinstance(entry, optax.MaskedNode)
      or getattr(entry, 'shape', None) == shape
      for entry, shape in pairs
    )

  def widen(new: Any) -> Any:
    return jax.tree.map(
      lambda old, new: fill(present, new, old) if is_like(old) else new,
      state,
      new,
      is_leaf=is_like,
    )

  narrowed = jax.tree.map(
    lambda node: keep(present, node) if is_like(node) else node,
    state,
    is_leaf=is_like,
  )
  return narrowed, widen
