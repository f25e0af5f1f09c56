import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems


def linear(x, slope):
  return jnp.sum(slope * x)


def test_a_linear_loss_rises_most_at_a_corner():
  # rho * sum of abs(slope * w).
  params, slope = jnp.array([1.0, -2.0, 0.0]), jnp.array([3.0, 4.0, 99.0])
  found = sharpness.adaptive_sharpness(linear, params, 0.1, args=(slope,))
  assert found == pytest.approx(0.1 * (3 + 8), rel=1e-5)


def test_a_linear_loss_rises_most_at_the_expected_point_of_the_ellipsoid():
  # rho * norm(slope * w), which needs the Euclidean projection.
  params, slope = jnp.array([1.0, -2.0, 0.0]), jnp.array([3.0, 4.0, 99.0])
  found = sharpness.adaptive_sharpness(
    linear, params, 0.1, p=2, args=(slope,), steps=200
  )
  assert found == pytest.approx(0.1 * np.sqrt(9 + 64), rel=1e-3)


@pytest.mark.parametrize('p', [2, np.inf])
def test_adaptive_sharpness_is_invariant_to_scale(p):
  # The same function of w and c * w, as in ReLU networks.
  params, batch = problems.network()
  scaled = {'first': params['first'], 'second': 8 * params['second']}

  def value_fn(x):
    return problems.network_loss(x, batch)

  def of_scaled(x):
    return problems.network_loss({**x, 'second': x['second'] / 8}, batch)

  settings = {'p': p, 'steps': 120}
  first = sharpness.adaptive_sharpness(value_fn, params, 0.05, **settings)
  second = sharpness.adaptive_sharpness(of_scaled, scaled, 0.05, **settings)
  # The set is the same, but for p = 2 the path differs.
  assert second == pytest.approx(first, rel=0.1 if p == 2 else 1e-3)
  averages = [
    sharpness.average_adaptive_sharpness(*given, 0.05, p=p)
    for given in ((value_fn, params), (of_scaled, scaled))
  ]
  assert averages[0] == pytest.approx(averages[1], rel=1e-3)


def test_the_average_rise_of_a_quadratic_equals_the_closed_form():
  diagonal = jnp.linspace(0.0, 2.0, 500)
  params = jnp.linspace(-3.0, 3.0, 500)
  expected = 0.5 * 0.1**2 * float(jnp.sum(diagonal * params**2))
  for p, variance in ((2, 1), (np.inf, 1 / 3)):
    found = sharpness.average_adaptive_sharpness(
      lambda x: 0.5 * jnp.sum(diagonal * (x**2 - 2 * x * params)),
      params,
      0.1,
      p=p,
      draws=40,
    )
    assert found == pytest.approx(variance * expected, rel=0.1)
