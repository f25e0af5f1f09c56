"""No public method is left out of the contracts."""

import inspect

import jax
import pytest

import optax_sam
from tests.contracts import table, training


def test_every_public_method_has_a_row():
  assert {
    name: row.factory for name, row in table.METHODS.items()
  } == table.public_methods()


def test_public_names_are_sorted_and_exist():
  assert list(optax_sam.__all__) == sorted(optax_sam.__all__)
  assert all(hasattr(optax_sam, name) for name in optax_sam.__all__)


@pytest.mark.parametrize('name', table.METHODS)
def test_arguments_in_common(name):
  row = table.METHODS[name]
  parameters = list(inspect.signature(row.factory).parameters.values())
  kinds = [parameter.kind for parameter in parameters]
  common = {'mask': None, 'axis_name': None, 'sync_ascent': False}
  if row.perturbs:
    assert parameters[0].name == row.radius
    assert kinds.pop(0) == inspect.Parameter.POSITIONAL_OR_KEYWORD
  else:
    common = {'axis_name': None}
  assert set(kinds) == {inspect.Parameter.KEYWORD_ONLY}
  last = parameters[-len(common) :]
  assert {parameter.name: parameter.default for parameter in last} == common


@table.every_row()
def test_flags_of_the_row(name):
  row, batch = table.ROWS[name], training.batch()
  tx, params = row(), training.params()
  value_fn = lambda p: training.loss(p, batch)

  def update(state):
    extra = training.functions(batch)
    if not row.needs_examples:
      extra = {'value_fn': value_fn}
    return tx.update(params, state, params, **extra)

  program = str(jax.make_jaxpr(update)(tx.init(params)))
  assert program.count(' cond[') == row.skips + row.refreshes

  if row.needs_examples:
    with pytest.raises(ValueError, match='per_example_value_fn'):
      tx.update(params, tx.init(params), params, value_fn=value_fn)
