import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems


@pytest.mark.parametrize('max_vectors', [None, 8])
@pytest.mark.parametrize('k', [1, 5])
def test_eigenvalues_equal_those_of_the_dense_hessian(k, max_vectors):
  params, batch = problems.network()
  found = sharpness.top_eigenvalues(
    problems.network_loss,
    params,
    k,
    args=(batch,),
    max_vectors=max_vectors,
    tolerance=1e-5,
  )
  expected = np.linalg.eigvalsh(problems.dense_hessian(params, batch))[::-1]
  np.testing.assert_allclose(found, expected[:k], rtol=1e-4)


@pytest.mark.parametrize(
  ('diagonal', 'expected'),
  [
    ([2.0, 2.0, 2.0, -7.0], [2.0, 2.0]),
    ([5.0] * 40, [5.0, 5.0]),
    ([0.0] * 6, [0.0, 0.0]),
    ([-1.0, -4.0, -9.0], [-1.0, -4.0]),
  ],
)
def test_equal_and_negative_eigenvalues_are_found(diagonal, expected):
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
