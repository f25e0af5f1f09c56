"""Eigen-SAM."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import eigen_sam, step
from tests.oracles.problems import QUARTIC

test_follows_the_rule = checks.follows(eigen_sam.CASES)
test_is_sam = checks.is_sam(
  optax_sam.eigen_sam, {'alpha': 0.0, 'refresh_every': 5, 'key': 0}
)


@pytest.mark.usefixtures('float64')
def test_golden_values_along_a_given_eigenvector():
  v = step.of_length(1, np.cos(np.arange(12.0)))
  method = optax_sam.eigen_sam(key=0)

  def init(params):
    return checks.with_fields(
      method.init(params),
      step_count=jnp.int32(
        1
      ),  # after the first estimate, before the second one
      direction=QUARTIC.tree(v),
    )

  given = optax.GradientTransformationExtraArgs(init, method.update)
  found = checks.run(optax.chain(given, QUARTIC.base()), QUARTIC)
  expected = (0.38722543, -0.24690761, 0.00540694, 0.87660902)
  checks.assert_golden(found.path, expected)
  rule = step.train(lambda x: eigen_sam.eigen_sam(x, v=v), QUARTIC)
  checks.assert_golden(rule.path, expected)
