"""TSAM."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import tsam

test_follows_the_rule = checks.follows(tsam.CASES)
test_is_sam_without_noise = checks.is_sam(
  optax_sam.tsam, {'noise': 0.0, 'num_perturbations': 2, 'key': 0}
)


@pytest.mark.usefixtures('float64')
def test_weights_are_a_softmax_of_the_losses():
  sums = []

  def grad_fn(w):
    sums.append(float(jnp.sum(w)))
    return jnp.sin(sums[-1]), jnp.full(2, jnp.cos(sums[-1]))

  tx, w = optax_sam.tsam(0.2, tilt=3.0, key=0), jnp.array([0.1, 0.2])
  u, _ = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
  there = np.array(sums[1::2])  # each after the gradient at the random point
  weights = np.exp(3 * np.sin(there)) / np.exp(3 * np.sin(there)).sum()
  np.testing.assert_allclose(u, np.sum(weights * np.cos(there)), rtol=1e-12)


def test_one_perturbation_does_not_depend_on_the_tilt():
  found = [
    checks.first_direction(
      optax_sam.tsam(tilt=tilt, num_perturbations=1, key=0)
    )
    for tilt in (0.0, 50.0)
  ]
  assert found[0] == found[1]
