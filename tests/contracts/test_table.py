"""Common properties of the rows of the contracts."""

import inspect

import optax_sam
from tests.contracts import table


def test_public_names_are_sorted_and_exist():
  assert list(optax_sam.__all__) == sorted(optax_sam.__all__)
  assert all(hasattr(optax_sam, name) for name in optax_sam.__all__)


def test_all_exceptions_are_names_of_rows():
  named = {*table.NEUTRAL, *table.ROUNDS, *table.NEVER_THE_BASE}
  assert named <= set(table.ROWS)
  assert set(table.REPRESENTATIVES) <= set(table.ROWS)


@table.every_method()
def test_arguments_have_the_common_names_and_order(name):
  """Radius or base optimizer first, then keyword-only; devices last."""
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


def test_a_row_of_every_path_is_chosen():
  chosen = {table._path(name) for name in table.paths()}
  assert chosen == {table._path(name) for name in table.ROWS}
  assert set(table.REPRESENTATIVES) <= set(table.paths()) < set(table.ROWS)
