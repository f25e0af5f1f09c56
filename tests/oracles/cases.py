"""Which settings of the methods are compared with their rules."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests import oracles


class Case(NamedTuple):
  """One setting of a method, and its rule.

  Attributes:
    name: of the method, with what makes this case another than the first.
    family: the file of the rule.
    function: builds the method.
    rule: the method in NumPy, with its arguments.
    arguments: those of both.
    tolerance: of the parameters; wider where numbers are stored in few bits.
  """

  name: str
  family: str
  function: Callable[..., Any]
  rule: Callable[..., Any]
  arguments: dict[str, Any]
  tolerance: float

  def method(self, base, batch, **given):
    """Returns the method, around the base optimizer if it takes one."""
    if self.takes('base'):
      given['base'] = base
    if self.takes('batch_like'):
      given['batch_like'] = jax.eval_shape(lambda: batch)
    return self.function(**self.arguments, **given)

  def optimizer(self, base, batch, **given):
    """Returns the method, followed by the base optimizer if it needs one."""
    method = self.method(base, batch, **given)
    is_whole = self.takes('base') or self.takes('learning_rate')
    return method if is_whole else optax.chain(method, base)

  def takes(self, name):
    return name in inspect.signature(self.function).parameters


def cases(function, rule, first, *others, rounded=()):
  """Returns the cases of one method.

  Args:
    function: builds the method.
    rule: the method in NumPy, which takes the same arguments.
    first: arguments of the case that bears the name of the method.
    *others: what other cases add to them.
    rounded: the same for those that store numbers in few bits.
  """
  family = rule.__module__.rsplit('.', 1)[-1]
  found = []
  for changes in ({}, *others, *rounded):
    said = words(dict(list(changes.items())[:2]))
    arguments = {**first, **changes}
    found.append(
      Case(
        ' '.join([function.__name__, *said]),
        family,
        function,
        functools.partial(rule, **arguments),
        arguments,
        1e-3 if changes in rounded else 1e-5,
      )
    )
  return found


def words(arguments):
  """Returns what arguments are called in the names of tests."""
  return [
    f'{key}={"schedule" if callable(value) else value}'
    for key, value in arguments.items()
  ]


def rising(start, by):
  """Returns a number that grows from step to step."""
  return lambda t: start + by * jnp.asarray(t).astype(float)


def all_cases():
  """Returns the cases of all families, by name."""
  found = {}
  for module in pkgutil.iter_modules(oracles.__path__):
    family = importlib.import_module(f'{oracles.__name__}.{module.name}')
    found |= {case.name: case for case in getattr(family, 'CASES', ())}
  return found
