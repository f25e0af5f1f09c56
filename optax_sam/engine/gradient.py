"""Incoming gradients: like the parameters, with None for absent gradients.

A leaf without a gradient is not updated, and excluded from the norms, decisions
and states of this step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.engine.partition import fill, keep, name_of, with_gradient
from optax_sam.trees import tree_math

_ARRAYS = (jax.Array, np.ndarray, np.generic, float)
_paths = jax.tree_util.tree_leaves_with_path


def gradient_like(
  updates: Any,
  params: optax.Params,
  name: str = 'updates',
  needed: Callable[[Any], Any] | None = None,
) -> Any:
  """Returns a gradient with one entry for each leaf of the parameters.

  `updates` has None for a leaf or a subtree without a gradient. `needed`
  selects the leaves that must have one; by default at least one must.
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
      is_none = lambda node: node is None
      updates = jax.tree.map(spread, updates, params, is_leaf=is_none)
    except (ValueError, TypeError, KeyError):
      problem = _difference(updates, params)
      msg = f'{name} must have the structure of the parameters, got {problem}.'
      raise ValueError(msg) from None
  entries = structure.flatten_up_to(updates)
  # For other leaves jax.grad has special gradients, such as float0.
  for (path, leaf), entry in zip(_paths(params), entries, strict=True):
    if entry is not None and tree_math.is_float(leaf):
      _check_entry(entry, leaf, name, f' at {name_of(path)!r}' if path else '')
  is_absent = jax.tree.map(lambda _, entry: entry is None, params, updates)
  ours = _paths(is_absent if needed is None else needed(is_absent))
  absent = [name_of(path) for path, is_none in ours if is_none]
  if absent and (needed is not None or len(absent) == len(ours)):
    msg = f'{name} must hold gradients, got None at {absent}.'
    raise ValueError(msg)
  return updates


def _check_entry(entry: Any, leaf: Any, name: str, at: str) -> None:
  shape = jnp.shape(entry) if isinstance(entry, _ARRAYS) else None
  if shape is None:
    problem = f'arrays, got a {type(entry).__name__}{at}'
  elif shape != leaf.shape:
    problem = f'arrays like the parameters, got {shape} for {leaf.shape}{at}'
    if shape[1:] == leaf.shape:
      problem += ': pass the mean of per-example gradients'
  elif not jnp.issubdtype(jnp.result_type(entry), jnp.floating):
    problem = f'real gradients, got {jnp.result_type(entry)}{at}'
  else:
    return
  msg = f'{name} must hold {problem}.'
  raise ValueError(msg)


def _difference(updates: Any, params: optax.Params) -> str:
  """Describes the first difference between two structures."""
  kind = lambda x: 'n array' if hasattr(x, 'dtype') else f' {type(x).__name__}'
  ours = {name_of(path): kind(leaf) for path, leaf in _paths(updates)}
  wanted = dict.fromkeys(name_of(path) for path, _ in _paths(params))
  for path in (x for x in ours if x not in wanted):
    return f'a{ours[path]} at {path!r}, where they have no leaf'
  for path in (x for x in wanted if x not in ours):
    return f'nothing at {path!r}'
  return f'{jax.tree.structure(updates)} for {jax.tree.structure(params)}'


def without_absent(
  updates: Any, state: Any, params: optax.Params
) -> tuple[Any, Callable[[Any], Any]]:
  """Removes from a state the parts for leaves without a gradient.

  Returns it, and a function that puts these parts into the next state.
  """
  present = with_gradient(updates, params)
  if present is None:
    return state, lambda new: new
  structure = jax.tree.structure(params)

  def is_like(node: Any) -> bool:
    try:
      entries = structure.flatten_up_to(node)
    except (ValueError, TypeError, KeyError):
      return False
    return all(
      isinstance(x, optax.MaskedNode) or getattr(x, 'shape', None) == leaf.shape
      for x, leaf in zip(entries, jax.tree.leaves(params), strict=True)
    )

  def each(function: Callable[..., Any], *states: Any) -> Any:
    leaf = lambda *of: function(*of) if is_like(of[0]) else of[-1]
    return jax.tree.map(leaf, *states, is_leaf=is_like)

  narrowed = each(lambda node: keep(present, node), state)
  return narrowed, lambda new: each(
    lambda old, new: fill(present, new, old), state, new
  )


def of_present(
  base: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Hides leaves without a gradient from a base optimizer."""
  base = optax.with_extra_args_support(base)

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    present = with_gradient(updates, params)
    given = keep(present, updates), state, keep(present, params)
    found, state = base.update(*given, **extra_args)
    return fill(present, found, updates), state

  return optax.GradientTransformationExtraArgs(base.init, update)
