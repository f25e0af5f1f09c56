"""Anti-PGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons
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
def test_parameters_without_their_noise():
  (case,) = anti_pgd.CASES
  run = checks.run(case.optimizer(NETWORK.base(), NETWORK.batch(0)))
  rule = step.train(case.rule, NETWORK)
  clean = optax_sam.without_noise(NETWORK.tree(run.path[-1]), run.state)
  expected = rule.path[-1] - rule.memory['noise']
  np.testing.assert_allclose(NETWORK.flat(clean), expected, rtol=0, atol=1e-10)


def noise_after_steps(tx, sigmas=None):
  """Returns the noise in the parameters after each step, and the state."""
  zeros = jnp.zeros((4, 50))
  w, state, found = zeros, tx.init(zeros), []
  for t in range(6):
    if sigmas is not None:
      state.hyperparams['sigma'] = sigmas[t]
    updates, state = tx.update(zeros, state, w)
    w = w + updates
    found.append(w)
  return found, state


def test_the_size_of_the_noise():
  # A schedule is read at the count before the increment, from 0 on; and
  # whatever a step adds, the next one takes back.
  sigmas = jnp.array([0.5, 0.0, 0.1, 0.0, 0.3, 2.0])
  scheduled = optax_sam.anti_pgd(lambda count: sigmas[count], key=1)
  found, state = noise_after_steps(scheduled)
  for sigma, noise in zip(sigmas, found, strict=True):
    assert abs(float(jnp.std(noise) - sigma)) < 0.2 * sigma + 1e-6
  clean = optax_sam.without_noise(found[-1], state)
  np.testing.assert_allclose(clean, 0, atol=1e-6)

  injected = optax.inject_hyperparams(optax_sam.anti_pgd)(0.1, key=1)
  by_hand, state = noise_after_steps(injected, sigmas)
  comparisons.assert_close(by_hand, found)
  clean = optax_sam.without_noise(found[-1], state)
  np.testing.assert_allclose(clean, 0, atol=1e-6)


def test_what_is_no_float_passes():
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


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_types_are_stable(dtype):
  tx = optax_sam.anti_pgd(0.1, key=0)
  params = {'w': jnp.ones((2, 3), dtype), 'b': jnp.ones((), dtype)}
  state = tx.init(params)
  updates, after = jax.jit(tx.update)(params, state, params, value=1.0)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert types(updates) == types(params)
  assert types(after) == types(state)
  assert types(jax.eval_shape(tx.init, params)) == types(state)


def test_a_bad_gradient_passes_and_changes_no_state():
  tx, params = optax_sam.anti_pgd(0.1, key=0), NETWORK.params()
  bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
  updates, after = tx.update(bad, tx.init(params), params)
  assert not comparisons.all_finite(updates)
  _, expected = tx.update(params, tx.init(params), params)
  comparisons.assert_equal(after, expected)


@pytest.mark.parametrize(
  ('argument', 'bad'),
  [
    ('sigma', -0.1),
    ('sigma', float('nan')),
    ('sigma', None),
    ('key', 0.5),
    ('key', 'seed'),
  ],
)
def test_bad_arguments(argument, bad):
  with pytest.raises(ValueError, match=f'^{argument} must be'):
    optax_sam.anti_pgd(**{'sigma': 0.1, 'key': 0, argument: bad})


def test_there_must_be_one():
  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match='one AntiPgdState, but has 0'):
    optax_sam.without_noise(jnp.ones(2), tx.init(jnp.ones(2)))
