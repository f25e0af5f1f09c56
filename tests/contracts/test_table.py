"""No public method is left out of the contracts."""

import inspect

import optax
import pytest

import optax_sam
from optax_sam import catalog
from tests.contracts import table


def _first(function):
  return next(iter(inspect.signature(function).parameters), None)


def test_every_public_method_has_a_row():
  """What builds a transformation is one, and nothing else is."""
  built = {
    name
    for name in optax_sam.__all__
    if inspect.isfunction(function := getattr(optax_sam, name))
    and function.__annotations__.get('return')
    is optax.GradientTransformationExtraArgs
  }
  assert built - {'sharpness_aware'} == set(table.METHODS)
  assert set(table.METHODS) <= set(catalog.METHODS)


def test_public_names_are_sorted_and_exist():
  assert list(optax_sam.__all__) == sorted(optax_sam.__all__)
  assert all(hasattr(optax_sam, name) for name in optax_sam.__all__)


def test_exceptions_are_rows():
  named = {*table.NEUTRAL, *table.ROUNDS, *table.NEVER_THE_BASE}
  assert named <= set(table.ROWS)
  assert set(table.REPRESENTATIVES) <= set(table.ROWS)


@table.every_method()
def test_arguments_in_common(name):
  """The radius or the base optimizer first, then names; axes last."""
  row = table.METHODS[name]
  parameters = list(row.parameters.values())
  first = {
    'chain': row.radius,
    'wraps': 'base',
    'replaces': 'learning_rate',
    'after': parameters[0].name,
  }[row.place]
  kinds = [parameter.kind for parameter in parameters]
  if first is not None:
    assert parameters[0].name == first
    assert kinds.pop(0) == inspect.Parameter.POSITIONAL_OR_KEYWORD
  assert set(kinds) <= {inspect.Parameter.KEYWORD_ONLY}
  common = {'mask': None, 'axis_name': None, 'sync_ascent': False}
  if row.place == 'replaces' or row.radius is None:
    common = {'axis_name': None}
  if row.place == 'after':
    common = {}
  last = parameters[len(parameters) - len(common) :]
  assert {parameter.name: parameter.default for parameter in last} == common


@table.every_method()
def test_the_example_gives_what_has_no_default(name):
  row = table.METHODS[name]
  needed = {
    parameter.name
    for parameter in row.parameters.values()
    if parameter.default is inspect.Parameter.empty
  } - {'base'}
  assert needed == set(row.method.example)
  for argument in needed:
    given = {**row.settings(), 'base': optax.sgd(0.1)}
    del given[argument]
    if row.place != 'wraps':
      del given['base']
    with pytest.raises(TypeError, match=argument):
      row.function(**given)
