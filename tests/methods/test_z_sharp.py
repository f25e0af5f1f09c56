"""ZSharp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import perturbations
from tests.methods import checks
from tests.oracles import z_sharp

SAM = optax_sam.z_sharp
HALF = {'quantile': 0.5}

test_follows_the_rule = checks.follows(z_sharp.CASES)
test_golden_values = checks.golden(
  SAM,
  z_sharp.z_sharp,
  ({'quantile': 0.6}, (0.40395355, -0.26798365, -0.00658989, 0.90652504)),
  (
    {'quantile': 0.6, 'radius': 'per_tensor'},
    (0.39753719, -0.25982659, -0.00710310, 0.89906198),
  ),
)

LEAVES = {
  'spread': np.sin(np.arange(1.0, 41.0)).reshape(5, 8),
  'ties': np.tile([3.0, -3.0, 0.0, 0.5], 6).reshape(2, 3, 4),
  'one row': np.array([[0.1, 5.0, -0.2]]),
  'equal': np.full((3, 3), 2.0),
  'vector': np.array([0.0, 1.0, 9.0]),
}


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('quantile', [0.0, 0.25, 0.3, 0.6, 0.95, 0.999])
def test_the_quantile_by_counting_equals_that_by_sorting(quantile):
  perturbation = perturbations.keep_outliers(quantile)
  gradient = {name: jnp.asarray(leaf) for name, leaf in LEAVES.items()}
  found, _ = jax.jit(perturbation.update)(gradient, perturbation.init(gradient))
  for name, leaf in LEAVES.items():
    expected = z_sharp.outliers(leaf.ravel(), leaf.shape, quantile)
    np.testing.assert_array_equal(
      found[name], expected.reshape(leaf.shape), name
    )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize(
  'build',
  [
    lambda: perturbations.scale_outliers_to_radius(0.1, 0.5),
    lambda: perturbations.keep_outliers(0.5),
  ],
)
def test_a_non_finite_entry_is_not_filtered_out(build, bad):
  perturbation = build()
  gradient = {'a': jnp.asarray([[1.0, bad, 3.0]]), 'b': jnp.ones((2, 2))}
  found, _ = perturbation.update(gradient, perturbation.init(gradient))
  if np.isfinite(np.asarray(found['a'])).all():  # not perturbed at all
    assert not any(np.any(leaf) for leaf in found.values())
