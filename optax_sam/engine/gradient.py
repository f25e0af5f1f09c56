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

_ARRAYS = (jax.Array, np.ndarray, np.generic, float)
_paths = jax.tree_util.tree_leaves_with_path


def gradient_like(
  updates: Any,
  params: optax.Params,
  name: str = 'updates',
  needed: Callable[[Any], Any] | None = None,
) -> Any:
  """Returns a gradient with one entry for each leaf of the parameters.

  Args:
    updates: a gradient, None where there is none, for a leaf or for many.
    params: the parameters.
    name: what the user calls the gradient.
    needed: from the parameters to leaves that must have a gradient, with
      something else in place of the others; by default any leaf will do.

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
      is_none = lambda node: node is None
      updates = jax.tree.map(spread, updates, params, is_leaf=is_none)
    except (ValueError, TypeError, KeyError):
      problem = _difference(updates, params)
      msg = f'{name} must have the structure of the parameters, got {problem}.'
      raise ValueError(msg) from None
  entries = structure.flatten_up_to(updates)
  # Of other leaves jax.grad has gradients of its own, such as float0.
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
      problem += ': of gradients of single examples, pass the mean'
  elif not jnp.issubdtype(jnp.result_type(entry), jnp.floating):
    problem = f'real gradients, got {jnp.result_type(entry)}{at}'
  else:
    return
  msg = f'{name} must hold {problem}.'
  raise ValueError(msg)


def _difference(updates: Any, params: optax.Params) -> str:
  """Says where the structures of two trees differ first."""
  kind = lambda x: 'n array' if hasattr(x, 'dtype') else f' {type(x).__name__}'
  ours = {name_of(path): kind(leaf) for path, leaf in _paths(updates)}
  wanted = dict.fromkeys(name_of(path) for path, _ in _paths(params))
  for path in (x for x in ours if x not in wanted):
    return f'a{ours[path]} at {path!r}, where they have no leaf'
  for path in (x for x in wanted if x not in ours):
    return f'nothing at {path!r}'
  return str(jax.tree.structure(updates))


def without_absent(
  updates: Any, state: Any, params: optax.Params
) -> tuple[Any, Callable[[Any], Any]]:
  """Leaves out of a state what belongs to leaves without a gradient.

  Returns:
    (the state for this step, function from the next such state to one of all
    parameters, in which what was left out is unchanged).
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
