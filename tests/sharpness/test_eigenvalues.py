import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from optax_sam.sharpness import eigenvalues
from tests.sharpness import problems


def top(k, **settings):
  params, batch = problems.network()
  return sharpness.top_eigenvalues(
    problems.network_loss, params, k, args=(batch,), **settings
  )


def dense():
  hessian = problems.dense_hessian(*problems.network())
  return np.linalg.eigvalsh(hessian)[::-1]


@pytest.mark.parametrize('max_vectors', [None, 8])
@pytest.mark.parametrize('k', [1, 5])
def test_they_are_those_of_the_dense_hessian(k, max_vectors):
  found = top(k, max_vectors=max_vectors, tolerance=1e-5)
  np.testing.assert_allclose(found, dense()[:k], rtol=1e-4)


@pytest.mark.parametrize(
  ('diagonal', 'expected'),
  [
    ([2.0, 2.0, 2.0, -7.0], [2.0, 2.0]),
    ([5.0] * 40, [5.0, 5.0]),
    ([0.0] * 6, [0.0, 0.0]),
    ([-1.0, -4.0, -9.0], [-1.0, -4.0]),
  ],
)
def test_equal_and_negative_eigenvalues(diagonal, expected):
  hessian = jnp.diag(jnp.array(diagonal))
  for max_vectors in (None, 5):
    found = sharpness.top_eigenvalues(
      problems.quadratic,
      jnp.ones(len(diagonal)),
      2,
      args=(hessian,),
      max_vectors=max_vectors,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_convergence_is_an_error(monkeypatch):
  # Every doubling of the steps is a program of its own.
  monkeypatch.setattr(eigenvalues, '_MOST_STEPS', 64)
  diagonal = np.random.default_rng(0).uniform(0.999, 1, 5000)
  with pytest.raises(RuntimeError, match='64 steps'):
    sharpness.top_eigenvalues(
      lambda x, d: 0.5 * jnp.sum(d * x**2),
      jnp.ones(5000),
      3,
      args=(jnp.asarray(diagonal, jnp.float32),),
      tolerance=1e-13,
    )
