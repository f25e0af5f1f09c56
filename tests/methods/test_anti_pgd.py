"""Anti-PGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import anti_pgd, step
from tests.oracles.problems import NETWORK, QUARTIC

test_follows_the_rule = checks.follows(anti_pgd.CASES)


@pytest.mark.usefixtures('float64')
def test_golden_values_of_given_noise(monkeypatch):
  checks.given_draws(monkeypatch)
  monkeypatch.setattr(QUARTIC, 'decay', 0.0)
  monkeypatch.setattr(QUARTIC, 'momentum', 0.0)
  expected = (0.56700640, -0.53728704, -0.21176294, 1.45341564)
  tx = optax.chain(QUARTIC.base(), optax_sam.anti_pgd(0.02, key=0))
  checks.assert_golden(checks.run(tx, QUARTIC).path, expected)
  rule = functools.partial(anti_pgd.anti_pgd, sigma=0.02, key=0)
  checks.assert_golden(step.train(rule, QUARTIC).path, expected)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('case', anti_pgd.CASES, ids=lambda case: case.name)
def test_without_noise_returns_the_noise_free_iterate(case):
  run = checks.run(case.optimizer(NETWORK.base(), NETWORK.batch(0)))
  rule = step.train(case.rule, NETWORK)
  clean = optax_sam.without_noise(NETWORK.tree(run.path[-1]), run.state)
  expected = rule.path[-1] - rule.memory['noise']
  np.testing.assert_allclose(NETWORK.flat(clean), expected, rtol=0, atol=1e-10)


def test_integer_leaves_get_no_noise():
  zero = np.zeros((), jax.dtypes.float0)
  params = {'w': jnp.zeros(3), 'steps': jnp.asarray(7), 'nothing': None}
  tx = optax_sam.anti_pgd(0.1, key=1)
  given = {**params, 'steps': zero}
  updates, state = tx.update(given, tx.init(params), params)
  assert updates['steps'] is zero
  clean = optax_sam.without_noise({**params, 'w': updates['w']}, state)
  assert clean['steps'] is params['steps']
  assert clean['nothing'] is None
  np.testing.assert_allclose(clean['w'], 0, atol=1e-6)


def test_without_noise_without_an_anti_pgd_state_raises():
  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match='one AntiPgdState, but has 0'):
    optax_sam.without_noise(jnp.ones(2), tx.init(jnp.ones(2)))
