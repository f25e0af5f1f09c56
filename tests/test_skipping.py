"""Policies: which steps take the second gradient, and that others don't."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import optax_sam
from tests.contracts import comparisons, table, training


def _gradients(squared_norms):
  """Returns gradients with given squared norms."""
  return jnp.sqrt(jnp.asarray(squared_norms, jnp.float32))[:, None]


def _decisions(tx, gradients, state=None):
  """Returns at which of these clean gradients a method ascends."""
  w = jnp.zeros(gradients.shape[1:])
  state = tx.init(w) if state is None else state

  @jax.jit
  def run(gradients):
    def step(state, gradient):
      _, state = tx.update(gradient, state, w, grad_fn=lambda _: w)
      return state, state.info.ascended

    return jax.lax.scan(step, state, gradients)[1]

  return np.asarray(run(gradients))


def _expected_share(lambda_1, lambda_2, start=0.0, end=1.0):
  """Returns the mean chance of an ascent over a part of the training.

  For a normally distributed squared norm with known moments that is the mean
  of Q(c), its upper tail, while c runs linearly from lambda_2 to lambda_1.
  """
  c = np.linspace(
    lambda_2 + start * (lambda_1 - lambda_2),
    lambda_2 + end * (lambda_1 - lambda_2),
    1001,
  )
  return stats.norm.sf(c).mean()


_STEPS = 40_000


@pytest.mark.parametrize(
  ('lambda_1', 'lambda_2', 'share', 'quarters'),
  [
    (-1.0, 1.0, 0.500, (0.24, 0.41, 0.59, 0.77)),
    (0.0, 2.0, 0.195, None),
    (-2.0, 0.0, 0.805, None),
  ],
)
def test_share_of_second_gradients(lambda_1, lambda_2, share, quarters):
  # Moments over a thousand steps are the known ones of the formula, nearly.
  tx = optax_sam.ae_sam(
    total_steps=_STEPS, decay=0.999, lambda_1=lambda_1, lambda_2=lambda_2
  )
  warm = tx.init(jnp.zeros(1))
  warm = warm._replace(
    policy=warm.policy._replace(mean=jnp.float32(100), variance=jnp.float32(25))
  )
  x = 100 + 5 * np.random.default_rng(0).standard_normal(_STEPS)
  ascended = _decisions(tx, _gradients(x), warm)
  np.testing.assert_allclose(ascended.mean(), share, atol=0.01)
  found = ascended.reshape(4, -1).mean(axis=1)
  expected = [
    _expected_share(lambda_1, lambda_2, i / 4, (i + 1) / 4) for i in range(4)
  ]
  np.testing.assert_allclose(found, expected, atol=0.015)
  if quarters:
    np.testing.assert_allclose(found, quarters, atol=0.02)


def test_share_at_the_default_decay():
  # Moments over ten steps only, and from zero on.
  tx = optax_sam.ae_sam(total_steps=_STEPS)
  x = 100 + 5 * np.random.default_rng(1).standard_normal(_STEPS)
  ascended = _decisions(tx, _gradients(x))
  np.testing.assert_allclose(ascended.mean(), 0.5, atol=0.02)
  quarters = ascended.reshape(4, -1).mean(axis=1)
  np.testing.assert_allclose(quarters, [0.24, 0.41, 0.59, 0.77], atol=0.04)


def test_share_of_ae_look_sam():
  tx = optax_sam.ae_look_sam(total_steps=10_000)
  x = 100 + 5 * np.random.default_rng(2).standard_normal(10_000)
  share = _decisions(tx, _gradients(x)).mean()
  np.testing.assert_allclose(share, 0.195, atol=0.02)


def test_the_scale_of_the_loss_does_not_matter():
  rng = np.random.default_rng(3)
  gradients = jnp.asarray(rng.standard_normal((300, 5)), jnp.float32)
  tx = optax_sam.ae_sam(total_steps=300)
  decisions = _decisions(tx, gradients)
  assert 0.2 < decisions.mean() < 0.8
  # A power of two, so that not even a rounding differs.
  np.testing.assert_array_equal(decisions, _decisions(tx, 8 * gradients))


def test_moments_by_hand():
  tx = optax_sam.ae_sam(total_steps=2, decay=0.9, lambda_1=0.0, lambda_2=1.0)
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
    assert bool(state.info.ascended)
  _, state = tx.update(w, state, w, grad_fn=lambda p: p)
  assert not bool(state.info.ascended)
  assert int(state.info.second_gradients) == 2


def test_no_deviation_exceeds_what_the_moments_can_show():
  # Just below 1 / sqrt(1 - decay) the first step ascends, above none does.
  gradients = _gradients(np.random.default_rng(4).exponential(size=200))
  bound = 10**0.5
  for factor, ascends in ((0.999, True), (1.001, False)):
    lambdas = {'lambda_1': factor * bound, 'lambda_2': factor * bound}
    if ascends:
      tx = optax_sam.ae_sam(total_steps=200, **lambdas)
      assert _decisions(tx, gradients)[0]
    else:
      with pytest.warns(UserWarning, match='no step ascends'):
        tx = optax_sam.ae_sam(total_steps=200, **lambdas)
      assert not _decisions(tx, gradients).any()


_SKIPPING = {
  'ss_sam': lambda: optax_sam.ss_sam(probability=0.5, key=2),
  'look_sam': lambda: optax_sam.look_sam(period=3),
  'ae_sam': lambda: optax_sam.ae_sam(total_steps=12),
  'ae_look_sam': lambda: optax_sam.ae_look_sam(total_steps=12),
}


def _run(update, tx, steps=12):
  """Returns what `update` counts at each step, and whether it ascended."""
  w, state = jnp.ones(3), tx.init(jnp.ones(3))
  rng = np.random.default_rng(5)
  counted, ascended = [], []
  for _ in range(steps):
    gradient = jnp.asarray(rng.standard_normal(3), jnp.float32)
    calls, state = update(gradient, state, w)
    counted.append(calls)
    ascended.append(int(state.info.ascended))
  assert 0 < sum(ascended) < steps
  assert int(state.info.second_gradients) == sum(ascended)
  assert int(state.count) == steps
  return counted, ascended


@pytest.mark.parametrize('name', _SKIPPING)
def test_skipped_steps_do_not_call_grad_fn(name):
  tx = _SKIPPING[name]()

  def update(gradient, state, w):
    calls = []
    grad_fn = lambda p: (calls.append(1), p)[1]
    _, state = tx.update(gradient, state, w, grad_fn=grad_fn)
    return len(calls), state

  counted, ascended = _run(update, tx)
  assert counted == ascended


@pytest.mark.parametrize('name', _SKIPPING)
def test_skipped_steps_do_not_run_it_in_a_program_either(name):
  tx = _SKIPPING[name]()
  calls = []

  def grad_fn(p):
    jax.debug.callback(lambda: calls.append(1))
    return p

  @jax.jit
  def jitted(gradient, state, w):
    return tx.update(gradient, state, w, grad_fn=grad_fn)[1]

  def update(gradient, state, w):
    calls.clear()
    state = jitted(gradient, state, w)
    jax.effects_barrier()
    return len(calls), state

  counted, ascended = _run(update, tx)
  assert counted == ascended


@pytest.mark.parametrize('name', _SKIPPING)
def test_both_ways_to_branch_give_the_same(name):
  tx = _SKIPPING[name]()
  loss = lambda p: jnp.sum(p**4)
  grad_fn = jax.jit(jax.grad(loss))
  step = lambda g, s, p: tx.update(g, s, p, grad_fn=grad_fn)
  outside = _run(lambda *given: step(*given), tx)
  inside = _run(lambda *given: jax.jit(step)(*given), tx)
  assert outside[1] == inside[1]
  for eager, jitted in zip(outside[0], inside[0], strict=True):
    np.testing.assert_allclose(eager, jitted, rtol=1e-5)


@pytest.mark.parametrize('name', table.METHODS)
def test_a_branch_of_the_callers_choice(name):
  # Programs that are compiled for one branch each take the policy's steps.
  tx = table.METHODS[name]()
  batch = training.batch()
  params, state = training.params(), tx.init(training.params())

  def step(params, state, **branch):
    given = training.functions(batch)
    grads = jax.grad(given['value_fn'])(params)
    return tx.update(grads, state, params, **given, **branch)

  follow = jax.jit(step)
  programs = {
    branch: jax.jit(functools.partial(step, ascend=branch))
    for branch in (False, True)
  }
  for program in programs.values():
    text = program.lower(params, state).compile().as_text()
    assert ('conditional(' in text) == table.METHODS[name].refreshes
  for _ in range(4):
    found = {branch: run(params, state) for branch, run in programs.items()}
    updates, state = follow(params, state)
    decided = bool(state.info.decided)
    same = comparisons.without_keys((updates, state))
    comparisons.assert_close(comparisons.without_keys(found[decided]), same)
    # The branch that wasn't taken: the statistics went on all the same.
    _, other = found[not decided]
    assert bool(other.info.ascended) != bool(other.info.decided) == decided
    for choice in ('policy', 'perturbation', 'count'):
      states = (getattr(other, choice), getattr(state, choice))
      comparisons.assert_close(*map(comparisons.without_keys, states))
    params = optax.apply_updates(params, optax.tree.scale(-0.05, updates))


def test_the_choice_of_a_branch_is_a_bool():
  tx, w = optax_sam.sam(), jnp.ones(3)
  with pytest.raises(ValueError, match=r'^ascend must be one of None, True'):
    tx.update(w, tx.init(w), w, grad_fn=lambda p: p, ascend='yes')


@pytest.mark.parametrize('name', table.METHODS)
def test_the_compiled_program_branches_where_a_method_skips(name):
  row = table.METHODS[name]
  tx = row()
  update = training.direction(name)
  params = training.params()
  compiled = update.lower(params, tx.init(params), training.batch()).compile()
  branches = row.skips or row.refreshes
  assert ('conditional(' in compiled.as_text()) == branches


def test_a_late_start():
  method = optax_sam.sharpness_aware(
    optax_sam.perturbations.scale_to_radius(0.1),
    policy=optax_sam.policies.after(3, optax_sam.policies.every(2)),
  )
  decisions = _decisions(method, jnp.ones((8, 2)))
  # The policy that follows has counted from the start.
  assert decisions.tolist() == [0, 0, 0, 0, 1, 0, 1, 0]


def test_coins_do_not_depend_on_the_gradient():
  tx = optax_sam.ss_sam(probability=0.3, key=0)
  ones = _decisions(tx, jnp.ones((4000, 2)))
  others = _decisions(tx, jnp.zeros((4000, 2)))
  np.testing.assert_array_equal(ones, others)
  np.testing.assert_allclose(ones.mean(), 0.3, atol=0.03)
  other_key = optax_sam.ss_sam(probability=0.3, key=1)
  assert (ones != _decisions(other_key, jnp.ones((4000, 2)))).any()


def test_the_reused_part_has_the_length_that_was_asked_for():
  tx = optax_sam.look_sam(0.5, period=2, alpha=0.3)
  loss = lambda p: jnp.sum(jnp.arange(1.0, 6.0) * p**4)
  w = jnp.linspace(0.5, 1.0, 5)
  gradient = jax.grad(loss)(w)
  _, state = tx.update(gradient, tx.init(w), w, value_fn=loss)
  stored = state.descent.direction
  cosine = jnp.vdot(stored, gradient) / (
    jnp.linalg.norm(stored) * jnp.linalg.norm(gradient)
  )
  assert abs(float(cosine)) < 1e-5
  updates, _ = tx.update(2 * gradient, state, w, value_fn=loss)
  added = float(jnp.linalg.norm(updates - 2 * gradient))
  assert added == pytest.approx(0.3 * float(jnp.linalg.norm(2 * gradient)))
