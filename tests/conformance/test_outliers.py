"""Which entries stand out from their leaf: a quantile by counting."""

import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import perturbations

pytestmark = pytest.mark.usefixtures('float64')

LEAVES = {
  'spread': np.sin(np.arange(1.0, 41.0)).reshape(5, 8),
  'ties': np.tile([3.0, -3.0, 0.0, 0.5], 6).reshape(2, 3, 4),
  'one row': np.array([[0.1, 5.0, -0.2]]),
  'equal': np.full((3, 3), 2.0),
  'vector': np.array([0.0, 1.0, 9.0]),
}


def by_sorting(leaf, quantile):
  """The rule as it is written: z-scores, and a quantile that sorts them."""
  if leaf.ndim < 2:
    return leaf
  z = np.abs((leaf - leaf.mean()) / (leaf.std(ddof=1) + 1e-12))
  return np.where(z > np.quantile(z, quantile), leaf, 0)


@pytest.mark.parametrize('quantile', [0.0, 0.25, 0.3, 0.6, 0.95, 0.999])
def test_equals_the_rule_with_a_sort(quantile):
  piece = perturbations.keep_outliers(quantile)
  gradient = {name: jnp.asarray(leaf) for name, leaf in LEAVES.items()}
  found, _ = piece.update(gradient, piece.init(gradient))
  for name, leaf in LEAVES.items():
    np.testing.assert_array_equal(found[name], by_sorting(leaf, quantile), name)


def test_where_nothing_stands_out_the_gradient_stays():
  gradient = {'a': jnp.full((2, 2), 3.0), 'b': jnp.zeros(2)}
  piece = perturbations.keep_outliers()
  found, _ = piece.update(gradient, piece.init(gradient))
  np.testing.assert_array_equal(found['a'], gradient['a'])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize(
  'piece',
  [
    perturbations.scale_outliers_to_radius(0.1, 0.5),
    perturbations.keep_outliers(0.5),
  ],
)
def test_a_bad_entry_is_not_filtered_away(piece, bad):
  gradient = {'a': jnp.asarray([[1.0, bad, 3.0]]), 'b': jnp.ones((2, 2))}
  found, _ = piece.update(gradient, piece.init(gradient))
  if np.isfinite(np.asarray(found['a'])).all():  # not perturbed at all
    assert not any(np.any(leaf) for leaf in found.values())
