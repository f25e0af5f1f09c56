import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness.problems import quadratic


def test_one_step_has_the_length_of_the_radius():
  # L = (w1^2 + 4 w2^2) / 2 at (2, 1): g = (2, 4), and rho = norm(g) moves to
  # (4, 5), where L = 58 after 4.
  hessian = jnp.diag(jnp.array([1.0, 4.0]))
  params = jnp.array([2.0, 1.0])
  rise = sharpness.sam_sharpness(
    quadratic, params, float(np.sqrt(20)), args=(hessian,)
  )
  assert rise == pytest.approx(54.0, rel=1e-5)


def test_two_steps_equal_those_by_hand():
  # For L = x the gradient is 1: two steps of a tenth of the radius.
  rise = sharpness.sam_sharpness(lambda x: x[0], jnp.ones(1), 0.5, steps=2)
  assert rise == pytest.approx(0.1, rel=1e-5)


def test_many_steps_find_the_sharpest_direction():
  # The gradient points away from it, so one step does not find it.
  hessian = jnp.diag(jnp.array([1.0, 10.0]))
  params = jnp.array([1.0, 1e-2])
  one = sharpness.sam_sharpness(quadratic, params, 1.0, args=(hessian,))
  many = sharpness.sam_sharpness(
    quadratic, params, 1.0, steps=40, args=(hessian,)
  )
  angles = jnp.linspace(0, 2 * jnp.pi, 10_001)
  ball = params[None] + jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
  start = quadratic(params, hessian)
  largest = max(jax.vmap(quadratic, (0, None))(ball, hessian)) - start
  assert one < 0.6 * largest
  assert many == pytest.approx(float(largest), rel=1e-2)


def test_the_result_is_the_largest_rise_not_the_last():
  # A narrow ridge inside the ball; later steps overshoot it.
  def ridge(x):
    return jnp.exp(-(((x[0] - 0.25) / 0.08) ** 2)) + 1e-3 * x[0]

  values = [float(ridge(jnp.array([0.1 * i]))) for i in range(4)]
  rise = sharpness.sam_sharpness(ridge, jnp.zeros(1), 1.0, steps=3)
  assert rise == pytest.approx(max(values[1:]) - values[0], rel=1e-4)


def test_restarts_find_a_hill_beyond_a_valley():
  # At the start the gradient points away from the higher hill.
  def hills(x):
    return jnp.exp(-((x[0] + 0.8) ** 2) / 0.08) + 0.1 * x[0]

  settings = {'rho': 1.0, 'steps': 12}
  alone = sharpness.sam_sharpness(hills, jnp.zeros(1), **settings)
  many = sharpness.sam_sharpness(hills, jnp.zeros(1), restarts=6, **settings)
  assert alone == pytest.approx(0.1, rel=1e-2)
  assert many > 0.8
