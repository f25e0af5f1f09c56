"""SS-SAM."""

import jax.numpy as jnp
import numpy as np

import optax_sam
from tests.methods import checks
from tests.oracles import ss_sam

SAM = optax_sam.ss_sam

test_follows_the_rule = checks.follows(ss_sam.CASES)
test_is_base = checks.is_base(SAM, {'probability': 0.0, 'key': 0})
test_is_sam = checks.is_sam(SAM, {'probability': 1, 'key': 0})


def test_draws_do_not_depend_on_the_gradient():
  tx = SAM(probability=0.3, key=0)
  ones = checks.decisions(tx, jnp.ones((4000, 2)))
  others = checks.decisions(tx, jnp.zeros((4000, 2)))
  np.testing.assert_array_equal(ones, others)
  np.testing.assert_allclose(ones.mean(), 0.3, atol=0.03)
  other_key = checks.decisions(SAM(probability=0.3, key=1), jnp.ones((4000, 2)))
  assert (ones != other_key).any()
