"""ESAM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_sam
from optax_sam import perturbations, selections
from tests import compiling
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.methods.examples import SIZES, mean_of_units, ranked, scores_of
from tests.oracles import esam
from tests.oracles.step import count

SAM = optax_sam.esam

test_follows_the_rule = checks.follows(esam.CASES)
test_is_sam = checks.is_sam(SAM, {'beta': 1.0, 'gamma': 1.0, 'key': 0})
test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  SAM, rho=0.5, gamma=1, beta=1.0, key=0
)
test_bad_losses_are_never_chosen = checks.bad_losses_are_never_chosen(
  SAM, rho=0.1, gamma=2, beta=1.0, key=0
)


@functools.cache
def direction_of(batch_size, size, dtype):
  tx = SAM(beta=1.0, gamma=size, key=0)
  w = jnp.zeros(batch_size)

  def losses(w, batch):
    """Any values before, and any others after, a perturbation."""
    moved = jnp.any(w != 0)
    known = jnp.where(moved, batch['after'], batch['before'])
    return known + (batch['row'] @ (w - jax.lax.stop_gradient(w))).astype(dtype)

  def direction(before, after):
    batch = {'before': before, 'after': after, 'row': jnp.eye(batch_size)}
    return tx.update(
      jnp.ones(batch_size),
      tx.init(w),
      w,
      per_example_value_fn=losses,
      batch=batch,
    )[0]

  return jax.jit(direction)


@pytest.mark.parametrize(('batch_size', '_', 'size'), SIZES)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_examples_are_those_whose_losses_rise_most(batch_size, _, size, data):
  before, after = (data.draw(scores_of(batch_size)) for _ in range(2))
  with np.errstate(invalid='ignore'):
    rows = ranked(after - before, count(size, batch_size))
  found = direction_of(batch_size, size, 'float32')(before, after)
  expected = mean_of_units(rows, batch_size)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rises_of_half_precision_losses_are_not_rounded():
  before = jnp.array([2.0**-8, 0.0], jnp.bfloat16)
  after = jnp.array([100.5, 100.5], jnp.bfloat16)
  found = direction_of(2, 1, 'bfloat16')(before, after)
  np.testing.assert_allclose(found, [0.0, 1.0])


@pytest.mark.usefixtures('float64')
def test_perturbs_whole_tensors_to_the_full_radius():
  """Also at the first recorded step, where every tensor is kept."""
  recording = Recording('P1_esam_dydjw9')
  scale = perturbations.scale_to_radius(0.05 / 0.6)
  for t in range(recording.steps):
    kept = np.repeat(recording['esam_tensor_active'][t], [48, 8, 24, 3])
    gradient = recording.tree(recording['g'][t] * kept)
    epsilon, _ = scale.update(gradient, scale.init(gradient))
    np.testing.assert_allclose(
      recording.flat(epsilon), recording['eps'][t], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
      np.linalg.norm(recording['eps'][t]), 0.05 / 0.6, rtol=2e-6
    )


@pytest.mark.usefixtures('float64')
def test_keeps_the_example_that_a_strict_comparison_loses():
  """gamma=0.5 of 16 is 8 examples; the program keeps the 7 above the 8th."""
  recording = Recording('P1_esamb1_dydjw9')
  for t in range(recording.steps):
    before = recording['esam_losses_before'][t]
    rise = jnp.asarray(recording['esam_losses_after'][t] - before)
    ours = np.asarray(selections.largest(rise, 8))
    theirs = set(np.flatnonzero(recording['esam_selected'][t]).tolist())
    assert len(theirs) == 7
    assert theirs == set(ours[:7].tolist())


SQUARES = {
  # Every example has the loss whose gradient is the point it is taken at.
  'per_example_value_fn': lambda p, b: jnp.full(
    len(b), sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)) / 2
  ),
  'batch': np.zeros(4),
}


@pytest.mark.usefixtures('float64')
def test_descends_where_all_losses_rise_alike():
  """No example is strictly above the others, and the program keeps none."""
  method = SAM(0.05, beta=1.0, gamma=0.5, key=0)
  gradient, params = jnp.array([3.0, 4.0]), jnp.ones(2)
  found = checks.perturbed(method, gradient, params, **SQUARES)
  np.testing.assert_allclose(found, [1.03, 1.04], rtol=1e-10)


@pytest.mark.usefixtures('float64')
def test_draws_leaves_from_the_first_step_on():
  """The program keeps all at first, and fails where it keeps none."""
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1), 'c': jnp.zeros(1)}
  gradient = jax.tree.map(jnp.ones_like, params)

  def first_step(key):
    method = SAM(0.3, beta=0.5, gamma=1.0, key=key)
    return checks.perturbed(method, gradient, params, **SQUARES)

  points = jax.jit(jax.vmap(first_step))(
    jax.random.split(jax.random.key(0), 20)
  )
  epsilons = np.concatenate(jax.tree.leaves(points), axis=1)
  kept = np.count_nonzero(epsilons, axis=1)
  assert set(kept) == {0, 1, 2, 3}
  np.testing.assert_allclose(
    np.linalg.norm(epsilons, axis=1),
    np.where(kept > 0, 0.3 / 0.5, 0.0),
    rtol=1e-10,
  )


def test_losses_of_the_clean_pass_save_a_forward_pass():
  """XLA doesn't see that two forward passes agree if one has a gradient."""
  width, batch_size = 64, 32
  method = SAM(rho=0.5, gamma=1, beta=1.0, key=0)
  batch = jnp.ones((batch_size, width))
  params = jnp.ones((width, width))

  def losses_of(params, batch):
    hidden = batch @ params
    hidden /= jnp.sqrt(jnp.var(hidden, axis=-1, keepdims=True) + 1)
    return jnp.sum(jnp.tanh(hidden @ params), axis=-1)

  def flops(is_given):
    def step(params, batch):
      def mean(params):
        losses = losses_of(params, batch)
        return jnp.mean(losses), losses

      grads, losses = jax.grad(mean, has_aux=True)(params)
      given = {'losses': losses} if is_given else {}
      return method.update(
        grads,
        method.init(params),
        params,
        per_example_value_fn=losses_of,
        batch=batch,
        **given,
      )[0]

    lowered = jax.jit(step).lower(params, batch)
    compiled = lowered.compile(**compiling.READ_AS_USERS)
    return compiled.cost_analysis()['flops']

  forward = 2 * 2 * batch_size * width**2
  saved = flops(is_given=False) - flops(is_given=True)
  assert 0.4 * forward < saved < 1.2 * forward
