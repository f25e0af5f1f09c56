"""AE-SAM and AE-LookSAM."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import optax_sam
from tests.methods import checks
from tests.oracles import ae_sam

SAM, LOOK_SAM = optax_sam.ae_sam, optax_sam.ae_look_sam
TWELVE = {'total_steps': 12}
STEPS = 40_000

test_follows_the_rule = checks.follows(ae_sam.CASES)
test_golden_values_of_two_ascents_and_a_reuse = checks.golden(
  LOOK_SAM,
  ae_sam.ae_look_sam,
  (
    {'total_steps': 3},
    (0.39788664, -0.26643847, -0.00858294, 0.91294739),
  ),
)
test_is_base = checks.is_base(SAM, {'lambda_1': 1e9, 'lambda_2': 1e9, **TWELVE})
ALWAYS = {'lambda_1': -1e9, 'lambda_2': -1e9, **TWELVE}
test_is_sam = checks.is_sam(SAM, ALWAYS)
test_is_sam_without_reuse = checks.is_sam(LOOK_SAM, ALWAYS)


def gradients(squared_norms):
  """Returns gradients with given squared norms."""
  return jnp.sqrt(jnp.asarray(squared_norms, jnp.float32))[:, None]


def normal_norms(seed, steps=STEPS):
  noise = np.random.default_rng(seed).standard_normal(steps)
  return gradients(100 + 5 * noise)


def expected_fraction(lambda_1, lambda_2, start=0.0, end=1.0):
  """Returns the mean probability of an ascent step over a part of the training.

  For a normally distributed squared norm with known moments it is the mean of
  the upper tail Q(c), with c linear from lambda_2 to lambda_1.
  """
  c = np.linspace(
    lambda_2 + start * (lambda_1 - lambda_2),
    lambda_2 + end * (lambda_1 - lambda_2),
    1001,
  )
  return stats.norm.sf(c).mean()


@pytest.mark.parametrize(
  ('lambda_1', 'lambda_2', 'fraction', 'quarters'),
  [
    (-1.0, 1.0, 0.500, (0.24, 0.41, 0.59, 0.77)),
    (0.0, 2.0, 0.195, None),
    (-2.0, 0.0, 0.805, None),
  ],
)
def test_fraction_of_perturbed_gradients_equals_its_expectation(
  lambda_1, lambda_2, fraction, quarters
):
  # Moments over a thousand steps are close to the known ones of the formula.
  tx = SAM(total_steps=STEPS, decay=0.999, lambda_1=lambda_1, lambda_2=lambda_2)
  warm = checks.with_fields(
    tx.init(jnp.zeros(1)), mean=jnp.float32(100), variance=jnp.float32(25)
  )
  ascended = checks.decisions(tx, normal_norms(0), warm)
  np.testing.assert_allclose(ascended.mean(), fraction, atol=0.01)
  found = ascended.reshape(4, -1).mean(axis=1)
  expected = [
    expected_fraction(lambda_1, lambda_2, i / 4, (i + 1) / 4) for i in range(4)
  ]
  np.testing.assert_allclose(found, expected, atol=0.015)
  if quarters:
    np.testing.assert_allclose(found, quarters, atol=0.02)


def test_fraction_at_the_default_decay_equals_its_expectation():
  # Moments over only ten steps, initialized at zero.
  ascended = checks.decisions(SAM(total_steps=STEPS), normal_norms(1))
  np.testing.assert_allclose(ascended.mean(), 0.5, atol=0.02)
  quarters = ascended.reshape(4, -1).mean(axis=1)
  np.testing.assert_allclose(quarters, [0.24, 0.41, 0.59, 0.77], atol=0.04)


def test_decisions_do_not_depend_on_the_scale_of_the_loss():
  rng = np.random.default_rng(3)
  given = jnp.asarray(rng.standard_normal((300, 5)), jnp.float32)
  tx = SAM(total_steps=300)
  found = checks.decisions(tx, given)
  assert 0.2 < found.mean() < 0.8
  # A power of two, so that rounding is equal.
  np.testing.assert_array_equal(found, checks.decisions(tx, 8 * given))


def test_no_step_ascends_above_the_largest_possible_deviation():
  # Just below 1 / sqrt(1 - decay) the first step ascends, above it none.
  given = gradients(np.random.default_rng(4).exponential(size=200))
  bound = 10**0.5
  lambdas = {'lambda_1': 0.999 * bound, 'lambda_2': 0.999 * bound}
  assert checks.decisions(SAM(total_steps=200, **lambdas), given)[0]
  lambdas = {'lambda_1': 1.001 * bound, 'lambda_2': 1.001 * bound}
  with pytest.warns(UserWarning, match='no ascent steps'):
    tx = SAM(total_steps=200, **lambdas)
  assert not checks.decisions(tx, given).any()


def test_moments_equal_those_by_hand():
  tx = SAM(total_steps=2, decay=0.9, lambda_1=0.0, lambda_2=1.0)
  w = jnp.zeros(1)
  state = tx.init(w)
  # c = 1 at the first step and 1/2 at the second.
  for x, mean, root, c in (
    (1.0, 0.1, 0.284605, 1.0),
    (2.0, 0.29, 0.604409, 0.5),
  ):
    _, state = tx.update(jnp.full(1, x**0.5), state, w, grad_fn=lambda p: p)
    policy = state.policy
    np.testing.assert_allclose(policy.squared_norm, x, rtol=1e-6)
    np.testing.assert_allclose(policy.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(jnp.sqrt(policy.variance), root, rtol=1e-5)
    np.testing.assert_allclose(policy.threshold, mean + c * root, rtol=1e-5)
