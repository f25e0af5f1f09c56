"""Finds what an element keeps, wherever it sits in an optimizer's state."""

from typing import Any, TypeVar

import jax

State = TypeVar('State')


def states(opt_state: Any, kind: type[State]) -> list[State]:
  """Returns the states of one class, in their order.

  Args:
    opt_state: state of an optimizer, of chains and wrappers of any depth.
    kind: a class of named tuples.
  """
  is_one = lambda node: isinstance(node, kind)
  nodes = jax.tree.leaves(opt_state, is_leaf=is_one)
  return [node for node in nodes if isinstance(node, kind)]


def only_state(opt_state: Any, kind: type[State], example: str) -> State:
  """Returns the one state of a class that an optimizer must hold.

  Args:
    opt_state: state of an optimizer, of chains and wrappers of any depth.
    kind: a class of named tuples.
    example: how an optimizer with such a state is written.

  Raises:
    ValueError: if there is none, or more than one.
  """
  found = states(opt_state, kind)
  if len(found) != 1:
    msg = (
      f'opt_state must hold one {kind.__name__}, but has {len(found)}: pass '
      f'that of an optimizer such as {example}.'
    )
    raise ValueError(msg)
  return found[0]
