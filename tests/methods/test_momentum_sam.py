"""MSAM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import momentum_sam

test_follows_the_rule = checks.follows(momentum_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.momentum_sam,
  momentum_sam.momentum_sam,
  ({'rho': 0.3}, (0.43531044, -0.34490639, -0.10795895, 1.03094407)),
)


@pytest.mark.usefixtures('float64')
def test_storing_perturbed_weights_is_equivalent():
  """The authors store the weights at which the gradient is computed.

  With momentum `m` and stored weights `x = w + epsilon`, a step removes the
  perturbation, updates, and perturbs along the new momentum.
  """
  rho, decay, rate = 0.3, 0.9, 0.1
  curvature = np.linspace(0.5, 3, 5)
  gradient = lambda w: curvature * w + np.cos(w)
  tx = optax.chain(
    optax_sam.momentum_sam(rho, decay=decay), optax.sgd(rate, momentum=decay)
  )

  @jax.jit
  def step(w, state):
    updates, state = tx.update(
      w, state, w, grad_fn=lambda w: curvature * w + jnp.cos(w)
    )
    return optax.apply_updates(w, updates), state

  w = jnp.asarray(np.sin(np.arange(1.0, 6.0)))
  stored, m, epsilon = np.array(w), np.zeros(5), np.zeros(5)
  state = tx.init(w)
  for _ in range(6):
    w, state = step(w, state)
    m = decay * m + gradient(stored)
    epsilon_next = -rho * m / np.linalg.norm(m)
    stored = stored - epsilon - rate * m + epsilon_next
    epsilon = epsilon_next
    np.testing.assert_allclose(w, stored - epsilon, rtol=0, atol=1e-12)


def test_a_step_with_ascend_false_is_the_base_optimizer():
  tx, w = optax_sam.momentum_sam(0.5), jnp.array([3.0, 4.0])
  given = {'grad_fn': lambda p: p}
  _, state = tx.update(w, tx.init(w), w, **given)
  u, after = tx.update(2 * w, state, w, **given, ascend=False)
  np.testing.assert_array_equal(u, 2 * w)
  first, second = (
    optax.tree_utils.tree_get(x, 'direction') for x in (state, after)
  )
  np.testing.assert_array_equal(first, second)
  assert int(optax_sam.metrics(after)['step_count']) == 2
