import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness


def quadratic(params, hessian):
  flat, _ = jax.flatten_util.ravel_pytree(params)
  return 0.5 * flat @ hessian @ flat


def network_loss(params, inputs, labels):
  hidden = jnp.tanh(inputs @ params['first'])
  return jnp.mean((hidden @ params['second'] - labels) ** 2)


def random_network():
  keys = jax.random.split(jax.random.key(0), 4)
  params = {
    'first': jax.random.normal(keys[0], (3, 4)),
    'second': jax.random.normal(keys[1], (4, 2)),
  }
  args = (
    jax.random.normal(keys[2], (5, 3)),
    jax.random.normal(keys[3], (5, 2)),
  )
  return params, args


def test_one_step_goes_to_the_end_of_the_gradient():
  # L = (w1^2 + 4 w2^2) / 2 at (2, 1): g = (2, 4), and rho = norm(g) moves to
  # (4, 5), where L = 58 after 4.
  hessian = jnp.diag(jnp.array([1.0, 4.0]))
  params = jnp.array([2.0, 1.0])
  rise = sharpness.sam_sharpness(
    quadratic, params, float(np.sqrt(20)), args=(hessian,)
  )
  assert rise == pytest.approx(54.0, rel=1e-5)


def test_two_steps_by_hand():
  # On L = x the gradient is 1: two steps of a tenth of the radius.
  rise = sharpness.sam_sharpness(lambda x: x[0], jnp.ones(1), 0.5, steps=2)
  assert rise == pytest.approx(0.1, rel=1e-5)


def test_many_steps_stay_in_the_ball():
  rise = sharpness.sam_sharpness(lambda x: x[0], jnp.ones(1), 0.5, steps=30)
  assert rise == pytest.approx(0.5, rel=1e-5)


def test_many_steps_find_the_sharpest_direction():
  # Where the gradient points away from it, one step doesn't.
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


def test_the_largest_rise_counts_not_the_last():
  # A narrow ridge within the ball: later steps are past it.
  def ridge(x):
    return jnp.exp(-(((x[0] - 0.25) / 0.08) ** 2)) + 1e-3 * x[0]

  values = [float(ridge(jnp.array([0.1 * i]))) for i in range(4)]
  rise = sharpness.sam_sharpness(ridge, jnp.zeros(1), 1.0, steps=3)
  assert rise == pytest.approx(max(values[1:]) - values[0], rel=1e-4)


def test_radius_zero_is_no_rise():
  params, args = random_network()
  for steps in (1, 3):
    rise = sharpness.sam_sharpness(
      network_loss, params, 0.0, steps=steps, args=args
    )
    assert rise == 0.0


def test_sharpness_of_a_diverged_model_is_nan():
  assert np.isnan(
    sharpness.sam_sharpness(lambda x: x[0], jnp.array([jnp.nan]), 0.1)
  )


@pytest.mark.parametrize('rho', [-1.0, 'wide', float('nan')])
def test_a_bad_radius_is_named(rho):
  with pytest.raises(ValueError, match='rho'):
    sharpness.sam_sharpness(lambda x: x[0], jnp.ones(1), rho)


def test_the_top_eigenvalue_is_that_of_the_dense_hessian():
  params, args = random_network()
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  dense = jax.hessian(lambda x: network_loss(unravel(x), *args))(flat)
  expected = np.linalg.eigvalsh(np.asarray(dense, np.float64))
  found = sharpness.top_eigenvalue(
    network_loss, params, args=args, tolerance=1e-5
  )
  assert found == pytest.approx(expected[-1], rel=1e-4)


def test_the_top_eigenvalue_is_the_algebraic_one():
  # The largest in magnitude is -9.
  hessian = jnp.diag(jnp.array([2.0, -9.0, 0.5]))
  found = sharpness.top_eigenvalue(quadratic, jnp.ones(3), args=(hessian,))
  assert found == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize('value', [-3.0, 5.0])
def test_one_parameter(value):
  found = sharpness.top_eigenvalue(
    quadratic, jnp.ones(1), args=(jnp.array([[value]]),)
  )
  assert found == pytest.approx(value)


def test_a_flat_loss_has_eigenvalue_zero():
  assert sharpness.top_eigenvalue(jnp.sum, jnp.ones(5)) == 0.0


def test_the_eigenvalue_of_a_diverged_model_is_nan():
  def value_fn(x):
    return jnp.sum(x**4)

  assert np.isnan(sharpness.top_eigenvalue(value_fn, jnp.full(3, jnp.inf)))


def test_the_same_seed_gives_the_same_eigenvalue():
  params, args = random_network()
  first, second = (
    sharpness.top_eigenvalue(network_loss, params, args=args, seed=1)
    for _ in range(2)
  )
  assert first == second


def test_no_convergence_is_an_error():
  generator = np.random.default_rng(0)
  hessian = jnp.diag(jnp.asarray(generator.uniform(0.99, 1, 400), jnp.float32))
  with pytest.raises(RuntimeError, match='max_iterations=1'):
    sharpness.top_eigenvalue(
      quadratic,
      jnp.ones(400),
      args=(hessian,),
      tolerance=1e-12,
      max_iterations=1,
    )


def test_other_arguments_compile_nothing_anew():
  traces = []

  def value_fn(params, scale):
    traces.append(scale)
    return scale * jnp.sum(params**2)

  found, counts = [], []
  for scale in (jnp.array(1.0), jnp.array(3.0)):
    found.append(sharpness.top_eigenvalue(value_fn, jnp.ones(3), args=(scale,)))
    sharpness.sam_sharpness(value_fn, jnp.ones(3), 0.1, args=(scale,))
    counts.append(len(traces))
  assert found == pytest.approx([2.0, 6.0])
  assert counts[0] == counts[1]
