"""No public method is left out of the contracts."""

import inspect

import jax
import pytest

import optax_sam
from tests.contracts import table


def test_every_public_method_has_a_row():
  assert {
    name: row.factory for name, row in table.METHODS.items()
  } == table.public_methods()


def test_public_names_are_sorted_and_exist():
  assert list(optax_sam.__all__) == sorted(optax_sam.__all__)
  assert all(hasattr(optax_sam, name) for name in optax_sam.__all__)


@pytest.mark.parametrize('name', table.METHODS)
def test_arguments_in_common(name):
  parameters = list(
    inspect.signature(table.METHODS[name].factory).parameters.values()
  )
  kinds = [parameter.kind for parameter in parameters]
  assert kinds[0] == inspect.Parameter.POSITIONAL_OR_KEYWORD
  assert set(kinds[1:]) == {inspect.Parameter.KEYWORD_ONLY}
  last = {parameter.name: parameter.default for parameter in parameters[-3:]}
  assert last == {'mask': None, 'axis_name': None, 'sync_ascent': False}


@table.every_row()
def test_flags_of_the_row(name):
  row, batch = table.ROWS[name], table.batch()
  tx, params = row(), table.params()
  value_fn = lambda p: table.loss(p, batch)

  def update(state):
    extra = table.functions(batch)
    if not row.picks_examples:
      extra = {'value_fn': value_fn}
    return tx.update(params, state, params, **extra)

  program = str(jax.make_jaxpr(update)(tx.init(params)))
  assert (' cond[' in program) == row.skips

  if row.picks_examples:
    with pytest.raises(ValueError, match='per_example_value_fn'):
      tx.update(params, tx.init(params), params, value_fn=value_fn)
