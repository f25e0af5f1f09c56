"""StableSAM."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import stable_sam

test_follows_the_rule = checks.follows(stable_sam.CASES)
test_leaf_without_gradient = checks.leaf_without_gradient(optax_sam.stable_sam)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('size', [1e-9, 1.0, 1e9])
def test_the_direction_is_as_long_as_the_clean_gradient(size):
  gradient, w = size * jnp.array([0.6, 0.8]), jnp.array([1.0, 2.0])
  method = optax_sam.stable_sam(0.3)
  found, _ = method.update(gradient, method.init(w), w, grad_fn=lambda w: 7 * w)
  np.testing.assert_allclose(np.linalg.norm(found), size, rtol=1e-11)
