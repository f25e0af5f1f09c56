import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems


def measure(measured, **settings):
  params, batch = problems.network()
  return measured(problems.network_loss, params, args=(batch,), **settings)


def dense():
  return problems.dense_hessian(*problems.network())


def standard_error(probes):
  # The variance of sign probes is twice the sum of off-diagonal squares.
  beside = dense() - np.diag(np.diag(dense()))
  return np.sqrt(2 * np.sum(beside**2) / probes)


def test_the_trace_is_within_its_standard_error():
  found = measure(sharpness.hessian_trace, probes=400)
  expected = np.trace(dense())
  error = standard_error(400)
  assert found.standard_error == pytest.approx(error, rel=0.2)
  assert abs(found.value - expected) < 3 * error


def test_the_trace_of_a_diagonal_hessian_is_exact():
  diagonal = jnp.array([3.0, -1.0, 0.5, 8.0])
  found = sharpness.hessian_trace(
    problems.quadratic, jnp.ones(4), args=(jnp.diag(diagonal),), probes=3
  )
  assert found == sharpness.Estimate(pytest.approx(10.5), pytest.approx(0.0))


@pytest.mark.parametrize(
  'size', [{}, {'examples': 60, 'inputs': 40, 'width': 40, 'outputs': 9}]
)
def test_the_exact_trace_equals_that_of_the_dense_hessian(size):
  params, batch = problems.network(**size)
  found = sharpness.hessian_trace(
    problems.network_loss, params, probes=None, args=(batch,)
  )
  expected = np.trace(problems.dense_hessian(params, batch))
  assert found == sharpness.Estimate(pytest.approx(expected, rel=1e-4), 0.0)


def test_the_density_with_all_steps_is_the_spectrum():
  found = measure(sharpness.spectral_density, steps=20, probes=4)
  for nodes, weights in zip(found.nodes, found.weights, strict=True):
    np.testing.assert_allclose(nodes, np.linalg.eigvalsh(dense()), atol=1e-4)
    assert weights.sum() == pytest.approx(1)


def test_the_trace_of_the_density_equals_that_of_the_dense_hessian():
  found = measure(sharpness.spectral_density, steps=10, probes=400)
  assert abs(found.trace() - np.trace(dense())) < 3 * standard_error(400)


def test_the_density_has_integral_one_and_peaks_at_the_eigenvalues():
  diagonal = jnp.array([4.0, 4.0, 1.0, -2.0])
  found = sharpness.spectral_density(
    problems.quadratic,
    jnp.ones(4),
    args=(jnp.diag(diagonal),),
    steps=3,
    probes=2,
  )
  values = np.linspace(-4, 6, 20_001)
  density = found.at(values)
  spacing = values[1] - values[0]
  assert density.sum() * spacing == pytest.approx(1, rel=1e-3)
  fractions = [
    density[np.abs(values - center) < 0.5].sum() * spacing
    for center in (-2, 1, 4)
  ]
  np.testing.assert_allclose(fractions, [0.25, 0.25, 0.5], rtol=1e-3)
