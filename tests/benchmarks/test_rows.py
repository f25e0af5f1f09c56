"""Rows of the speed table, without measurements."""

from benchmarks import rows
from optax_sam.catalog import METHODS


def test_every_method_has_a_row_and_names_are_unique():
  names = [row.name for row in rows.rows()]
  assert len(set(names)) == len(names)
  assert {name.partition(',')[0] for name in names} >= set(METHODS)


def test_methods_with_fixed_cost_have_a_gradient_count():
  for row in rows.rows():
    name = row.name.partition(',')[0]
    fixed = name not in METHODS or '+ s' not in METHODS[name].gradients
    if fixed or row.fraction is not None:
      assert 0 < row.gradients < 8, row.name
    else:
      assert row.gradients is None, row.name
