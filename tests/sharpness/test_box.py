import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness


@pytest.mark.parametrize('optimizer', ['l-bfgs-b', 'sign'])
def test_a_maximum_at_a_corner_equals_that_by_hand(optimizer):
  # L = w1^2 + 2 w2^2 = 9 at (1, -2). The maximum in the box of epsilon = 0.1 is
  # at the corner (1.2, -2.3): 1.44 + 10.58.
  params = jnp.array([1.0, -2.0])
  found = sharpness.epsilon_sharpness(
    lambda x: x[0] ** 2 + 2 * x[1] ** 2, params, 0.1, optimizer=optimizer
  )
  assert found == pytest.approx(100 * (12.02 - 9) / 10, rel=1e-4)


def test_a_maximum_inside_the_box_is_found():
  def hill(x):
    return jnp.exp(-(((x[0] - 0.1) / 0.1) ** 2))

  found = sharpness.epsilon_sharpness(hill, jnp.zeros(1), 0.5)
  start = float(np.exp(-1))
  assert found == pytest.approx(100 * (1 - start) / (1 + start), rel=1e-3)


@pytest.mark.parametrize('optimizer', ['l-bfgs-b', 'sign'])
def test_sharpness_is_not_negative(optimizer):
  found = sharpness.epsilon_sharpness(
    lambda x: -jnp.sum(x**2), jnp.zeros(3), 0.1, optimizer=optimizer
  )
  assert found == 0.0
