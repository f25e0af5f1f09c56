"""Which leaves a method updates, and which of them it may perturb.

Excluded leaves are replaced by `optax.MaskedNode`, as in `optax.masked`, so
that norms, counts and states exclude them.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.engine import models
from optax_sam.engine.trainable import Trainable
from optax_sam.trees import tree_math

Mask = Any | Callable[[optax.Params], Any] | None

_paths = jax.tree_util.tree_leaves_with_path
_NORM_LAYER = re.compile(r'(bn|ln|gn)_?\d*')


class Leaves(NamedTuple):
  """The leaves that a method updates: splits trees and joins them again.

  Attributes:
    floats: tree of bools like the parameters, True at floating-point leaves
      that have a gradient; None if all do.
    movable: tree of bools like the floating-point leaves, True at those that
      may be perturbed; None if all are.
    trained: tree of bools like the floating-point leaves, True at those that
      get a direction; None if all do.
  """

  floats: Any = None
  movable: Any = None
  trained: Any = None

  @classmethod
  def of(
    cls, params: optax.Params, mask: Mask = None, updates: Any = None
  ) -> 'Leaves':
    """Splits parameters by the types of their leaves, and by a mask.

    Leaves whose gradient in `updates` is None are excluded too, and so are
    those that a mask from `trainable` has as frozen.
    """
    floats = float_leaves(params)
    if updates is not None:
      floats = _both(floats, with_gradient(updates, params))
    if isinstance(mask, Trainable):
      trained = chosen_leaves(mask, params)
      found = cls(_both(floats, trained))
      if mask.perturbed is not None:
        movable = chosen_leaves(mask.movable, params)
        _check_gradients(movable, updates, params)
        floats = _both(floats, jax.tree.map(bool.__or__, movable, trained))
        found = cls(floats, keep(floats, movable), keep(floats, trained))
      if mask.among is None:
        return found
      return found._replace(movable=keep(found.floats, mask.among))
    if mask is None:
      return cls(floats)
    return cls(floats, chosen_leaves(mask, keep(floats, params)))

  def split(self, tree: Any) -> Any:
    """Returns the floating-point leaves of a tree like the parameters."""
    return keep(self.floats, tree)

  def join(self, tree: Any, others: Any) -> Any:
    """Undoes `split`; other leaves are those of `others`."""
    return fill(self.floats, tree, others)

  def inside(self, tree: Any) -> Any:
    """Returns the floating-point leaves that may be perturbed."""
    return keep(self.movable, tree)

  def needed(self, direction: Any) -> Any:
    """Returns the leaves of a direction that the base optimizer uses."""
    return keep(
      self.movable if self.trained is None else self.trained, direction
    )

  def join_updates(self, direction: Any, updates: Any) -> Any:
    """Returns a direction with the incoming updates of all other leaves."""
    direction = fill(self.trained, direction, self.split(updates))
    return self.join(direction, updates)

  def move(
    self, params: optax.Params, epsilon: optax.Updates, times: float = 1
  ) -> optax.Params:
    """Returns floating-point leaves, moved by a multiple of `epsilon`."""
    if times == 0:
      return params
    if times != 1:
      epsilon = jax.tree.map(lambda e: times * e, epsilon)
    moved = tree_math.add(self.inside(params), epsilon)
    return fill(self.movable, moved, params)

  def only_movable(self) -> 'Leaves':
    """Returns a split that takes only the leaves that may be perturbed."""
    if self.movable is None or self.floats is None:
      return Leaves(self.floats if self.movable is None else self.movable)
    nothing = jax.tree.map(lambda _: False, self.floats)
    return Leaves(fill(self.floats, self.movable, nothing))


def _both(left: Any, right: Any) -> Any:
  """Joins two trees of bools by `and`; None means True everywhere."""
  if left is None or right is None:
    return right if left is None else left
  return jax.tree.map(bool.__and__, left, right)


def _check_gradients(movable: Any, updates: Any, params: optax.Params) -> None:
  """Raises if a leaf that labels say to perturb comes without a gradient."""
  present = None if updates is None else with_gradient(updates, params)
  if present is None:
    return
  pairs = jax.tree.map(lambda *pair: pair == (True, False), movable, present)
  absent = [name_of(path) for path, x in _paths(pairs) if x]
  if absent:
    msg = (
      f'updates must hold gradients of all leaves with a perturbed label, got '
      f'None at {absent}: differentiate the loss by them too, though they are '
      f'not updated.'
    )
    raise ValueError(msg)


def path_parts(path: tuple[Any, ...]) -> list[str]:
  """Returns the names along a leaf's path, split at dots too.

  In an `nnx.State` the array of a variable is an attribute below the name of
  the variable; it is left out.
  """
  if path and getattr(path[-1], 'name', None) in ('value', 'raw_value'):
    path = path[:-1]
  names = []
  for entry in path:
    for attribute in ('key', 'name', 'idx'):
      if hasattr(entry, attribute):
        names.extend(str(getattr(entry, attribute)).split('.'))
        break
  return names


def float_leaves(params: optax.Params) -> Any:
  """Returns a tree of bools, True at floating-point leaves; None if all are."""
  _check_arrays(params)
  if all(tree_math.is_float(leaf) for leaf in jax.tree.leaves(params)):
    return None
  return jax.tree.map(tree_math.is_float, params)


def check_real(params: optax.Params, mask: Mask = None) -> None:
  """Raises if a leaf that may be perturbed is complex.

  The rules are for real numbers. A leaf that is excluded silently would not be
  noticed.
  """
  _check_arrays(params)
  warn_if_rounded(params, mask)
  is_complex = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.complexfloating)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if not any(is_complex(leaf) for _, leaf in leaves):
    return
  mask = mask.movable if isinstance(mask, Trainable) else mask
  allowed = jax.tree.leaves(chosen_leaves(mask, params))
  for (path, leaf), is_allowed in zip(leaves, allowed, strict=True):
    if is_allowed and is_complex(leaf):
      msg = (
        f'params must be real, got complex numbers at {name_of(path)!r}: keep '
        f'their real and imaginary parts as two leaves, or exclude them by '
        f'mask= if the method has it.'
      )
      raise ValueError(msg)


def warn_if_rounded(params: optax.Params, mask: Mask = None) -> None:
  """Warns, once, of dtypes that round a small perturbation away."""
  leaves = Leaves.of(params, mask)
  movable = leaves.inside(leaves.split(params))
  for path, leaf in jax.tree_util.tree_leaves_with_path(movable):
    if jnp.dtype(leaf.dtype).itemsize < 4:
      where = '/'.join(path_parts(path)) or 'params'
      warnings.warn(
        f'params hold {leaf.dtype} at {where!r}, which rounds most of a small '
        f'perturbation away: keep the parameters in float32 and cast them in '
        f'the model, or exclude such leaves by mask=.',
        stacklevel=2,
      )
      return


def _check_arrays(params: optax.Params) -> None:
  is_masked = lambda node: isinstance(node, optax.MaskedNode)
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    params, is_leaf=is_masked
  ):
    where = name_of(path) or 'params'
    if is_masked(leaf):
      msg = (
        f'params hold optax.MaskedNode at {where!r}: the method is inside '
        f'optax.masked or optax.partition, where the loss would not get all '
        f'parameters. Place it before optax.partition, with mask=:\n'
        f"  mask = optax_sam.trainable(labels, frozen='frozen')\n"
        f"  base = optax.partition({{'train': optax.sgd(0.1), "
        f"'frozen': optax.set_to_zero()}}, labels)\n"
        f'  optax.chain(optax_sam.sam(mask=mask), base)'
      )
      raise ValueError(msg)
    if not hasattr(leaf, 'dtype'):
      msg = (
        f'params must be arrays, got a {type(leaf).__name__} at {where!r}: '
        f'{models.advice(params)}.'
      )
      raise ValueError(msg)


def name_of(path: tuple[Any, ...]) -> str:
  """Returns the path of a leaf as text, '' if it is the whole tree."""
  return '/'.join(path_parts(path))


def with_gradient(updates: Any, params: optax.Params) -> Any:
  """Returns a tree of bools, True at leaves with a gradient; None if all."""
  structure = jax.tree.structure(params)
  present = [x is not None for x in structure.flatten_up_to(updates)]
  return None if all(present) else structure.unflatten(present)


def chosen_leaves(mask: Mask, params: optax.Params, name: str = 'mask') -> Any:
  """Returns a tree of bools like the parameters, from a prefix of it.

  The mask may be a function from the parameters, or None for everything.
  """
  if mask is None or not jax.tree.leaves(params):
    return jax.tree.map(lambda _: True, params)
  prefix = mask(params) if callable(mask) else mask

  def spread(value: Any, subtree: Any) -> Any:
    if not isinstance(value, (bool, np.bool_)):
      msg = (
        f'{name} must hold Python bools, one per leaf or subtree, got '
        f'{value!r}.'
      )
      raise ValueError(msg)
    return jax.tree.map(lambda _: bool(value), subtree)

  # Checked first, so that errors of the mapping keep their messages.
  prefix_tree = jax.tree.structure(prefix)
  try:
    prefix_tree.flatten_up_to(params)
  except (TypeError, KeyError, ValueError) as error:
    msg = (
      f'{name} must be a prefix of the parameters: its structure is '
      f'{prefix_tree}, that of params {jax.tree.structure(params)}.'
    )
    raise ValueError(msg) from error
  chosen = jax.tree.map(spread, prefix, params)
  # A function is a rule, such as a pattern of names, that may fit no leaf.
  if name == 'mask' and callable(mask) and not any(jax.tree.leaves(chosen)):
    paths, _ = jax.tree.flatten_with_path(params)
    names = ', '.join(repr(name_of(path)) for path, _ in paths[:10])
    msg = (
      f'mask must choose a leaf, got a function that chooses none of {names}: '
      f'change its rule, or leave the method out.'
    )
    raise ValueError(msg)
  return chosen


def keep(chosen: Any, tree: Any) -> Any:
  """Puts `optax.MaskedNode` where a leaf isn't chosen; None chooses all."""
  if chosen is None:
    return tree
  return jax.tree.map(
    lambda kept, leaf: leaf if kept else optax.MaskedNode(), chosen, tree
  )


def fill(chosen: Any, kept: Any, others: Any) -> Any:
  """Undoes `keep`, with the leaves of `others` in the places left out."""
  if chosen is None:
    return kept
  return jax.tree.map(
    lambda is_kept, leaf, other: leaf if is_kept else other,
    chosen,
    kept,
    others,
  )


def norm_layers_only(params: optax.Params) -> Any:
  """Chooses the parameters of normalization layers: SAM-ON.

  Pass it as `mask=` to any method: all parameters are updated, but only these
  are perturbed and counted in the norm. A leaf is chosen if a part of its path
  contains 'norm' (in any case) or is `bn`, `ln` or `gn` with an optional
  number. Useful radii are larger than without it: the default of the authors'
  class is 0.5, and one of their examples passes 10 to ASAM.

  Args:
    params: the parameters, a pytree with names, of arrays of any shape.

  Returns:
    A tree of Python bools like `params`.

  Raises:
    ValueError: if no leaf is chosen.

  References:
    Mueller, Vlaar, Rolnick, Hein, `Normalization Layers Are All That
    Sharpness-Aware Minimization Needs <https://arxiv.org/abs/2306.04226>`_,
    NeurIPS 2023.

  >>> import jax.numpy as jnp
  >>> params = {'dense': jnp.ones(3), 'BatchNorm_0': {'scale': jnp.ones(3)}}
  >>> norm_layers_only(params)
  {'BatchNorm_0': {'scale': True}, 'dense': False}
  """

  def is_norm(path: tuple[Any, ...], _: Any) -> bool:
    return any(
      'norm' in part.lower() or _NORM_LAYER.fullmatch(part.lower())
      for part in path_parts(path)
    )

  chosen = jax.tree_util.tree_map_with_path(is_norm, params)
  if not any(jax.tree.leaves(chosen)):
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [name_of(path) for path, _ in paths]
    msg = (
      f'norm_layers_only found no normalization layer among {names}: pass '
      f'another mask=, a function from the parameters to a tree of bools.'
    )
    raise ValueError(msg)
  return chosen
