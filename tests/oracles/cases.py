"""The settings at which methods are compared to their rules."""

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
  """A setting of a method, and its rule.

  Attributes:
    name: name of the method, with the differences to the first case.
    family: name of the file of the rule.
    function: builds the method.
    rule: the rule in NumPy, with its arguments.
    arguments: arguments of method and rule.
    tolerance: tolerance of the parameters; larger for low precision.
  """

  name: str
  family: str
  function: Callable[..., Any]
  rule: Callable[..., Any]
  arguments: dict[str, Any]
  tolerance: float

  def method(self, base, batch, **given):
    """Returns the method; it wraps the base optimizer if it takes one."""
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
    rule: the rule in NumPy, which takes the same arguments.
    first: arguments of the first case, which has the name of the method.
    *others: further arguments of the other cases.
    rounded: further arguments of cases in low precision.
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
  """Returns arguments as text, for the names of tests."""
  return [
    f'{key}={"schedule" if callable(value) else value}'
    for key, value in arguments.items()
  ]


def rising(start, by):
  """Returns a schedule that increases linearly."""
  return lambda t: start + by * jnp.asarray(t).astype(float)


def all_cases():
  """Returns the cases of all families, by name."""
  found = {}
  for module in pkgutil.iter_modules(oracles.__path__):
    family = importlib.import_module(f'{oracles.__name__}.{module.name}')
    found |= {case.name: case for case in getattr(family, 'CASES', ())}
  return found
