import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness.problems import (
  dense_hessian,
  network,
  network_loss,
  quadratic,
)


def test_the_top_eigenvalue_equals_that_of_the_dense_hessian():
  params, batch = network()
  expected = np.linalg.eigvalsh(dense_hessian(params, batch))
  found = sharpness.top_eigenvalue(
    network_loss, params, args=(batch,), tolerance=1e-5
  )
  assert found == pytest.approx(expected[-1], rel=1e-4)


def test_the_top_eigenvalue_is_the_algebraically_largest():
  # The largest in magnitude is -9.
  hessian = jnp.diag(jnp.array([2.0, -9.0, 0.5]))
  found = sharpness.top_eigenvalue(quadratic, jnp.ones(3), args=(hessian,))
  assert found == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize('value', [-3.0, 5.0])
def test_one_parameter_is_accepted(value):
  found = sharpness.top_eigenvalue(
    quadratic, jnp.ones(1), args=(jnp.array([[value]]),)
  )
  assert found == pytest.approx(value)


def test_no_convergence_raises():
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
