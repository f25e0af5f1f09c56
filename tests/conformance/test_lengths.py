"""How long epsilon is, which entries it has, and at which steps."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import masks, perturbations
from tests.conformance.reference import Recording, Replay

pytestmark = pytest.mark.usefixtures('float64')
RHO = 0.3
NORM = np.linalg.norm


def _of_weights(step):
  """The length relative to T of ASAM; the last leaf of P1 is a bias."""
  scale = np.abs(step.start) + 0.01
  scale[48:56] = scale[80:] = 1
  return NORM(step.epsilon / scale), RHO


def _in_the_metric(step):
  metric = 1 + step.clean**2
  return np.sqrt(np.sum(metric * step.epsilon**2)), RHO


def _of_all(step):
  return NORM(step.epsilon), RHO


def _of_some_leaves(step):
  return NORM(step.epsilon), RHO / 0.6 if step.epsilon.any() else 0


def _of_the_rise(step):
  """The first-order rise is sigma, unless the radius would be above 0.5."""
  rise = step.epsilon @ step.clean
  return rise, min(RHO, 0.5 * NORM(step.clean))


def _of_each_kernel(step):
  """The kernels of P1 lie before its biases, which share one length."""
  biases = np.r_[step.epsilon[48:56], step.epsilon[80:]]
  shares = np.r_[step.clean[48:56], step.clean[80:]] / NORM(step.clean)
  found = NORM(step.epsilon[:48]), NORM(step.epsilon[56:80]), NORM(biases)
  return found, (RHO, RHO, RHO * NORM(shares))


# What is measured of an epsilon, and what it must be.
LENGTHS = {
  'sam': (optax_sam.sam, _of_all),
  'sam p=inf': (
    functools.partial(optax_sam.sam, p=math.inf),
    lambda step: (np.abs(step.epsilon), np.full(83, RHO)),
  ),
  'gsam': (optax_sam.gsam, _of_all),
  'gradient_norm_penalty': (optax_sam.gradient_norm_penalty, _of_all),
  'wsam': (optax_sam.wsam, _of_all),
  'friendly_sam': (optax_sam.friendly_sam, _of_all),
  'friendly_sam official': (
    functools.partial(optax_sam.friendly_sam, order='official'),
    _of_all,
  ),
  'k_sam': (
    functools.partial(optax_sam.k_sam, ascent=2, descent=0.5),
    _of_all,
  ),
  'subset_sam': (optax_sam.subset_sam, _of_all),
  'asam': (optax_sam.asam, _of_weights),
  'fisher_sam': (optax_sam.fisher_sam, _in_the_metric),
  'unnormalized_sam': (
    optax_sam.unnormalized_sam,
    lambda step: (step.epsilon, RHO * step.clean),
  ),
  'unnormalized_sam clip': (
    functools.partial(optax_sam.unnormalized_sam, clip=True),
    lambda step: (NORM(step.epsilon), RHO * min(NORM(step.clean), 1)),
  ),
  'esam': (functools.partial(optax_sam.esam, key=3), _of_some_leaves),
  'le_sam': (optax_sam.le_sam, _of_the_rise),
  'z_sharp': (optax_sam.z_sharp, _of_all),
  'z_sharp per_tensor': (
    functools.partial(optax_sam.z_sharp, radius='per_tensor'),
    _of_each_kernel,
  ),
  'cr_sam': (optax_sam.cr_sam, _of_all),
}


def replayed(method):
  recording = Recording('P1_sam_davda54')
  return list(Replay(recording, method, watched=True).run())


@pytest.mark.parametrize('name', LENGTHS)
def test_length_of_epsilon(name):
  method, measure = LENGTHS[name]
  steps = replayed(method(RHO))
  for step in steps:
    found, expected = measure(step)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
  if name == 'unnormalized_sam clip':  # some are clipped, some are not
    assert min(NORM(s.clean) for s in steps) < 1
    assert max(NORM(s.clean) for s in steps) > 1
  if name == 'esam':  # its leaves are drawn anew
    assert len({(step.epsilon != 0).tobytes() for step in steps}) > 3


@pytest.mark.parametrize(
  ('method', 'due'),
  [
    (functools.partial(optax_sam.sparse_sam_fisher, refresh_every=3), 0),
    (
      functools.partial(
        optax_sam.sparse_sam_dynamic, refresh_every=3, total_steps=12, key=0
      ),
      1,
    ),
  ],
)
def test_masked_epsilon(method, due):
  """SSAM-F refreshes before it perturbs, SSAM-D for the step behind."""
  used = []
  for step in replayed(method(RHO)):
    used.append(step.epsilon != 0)
    assert used[-1].sum() == masks.num_kept(0.5, 83) == 41
    masked = step.clean * used[-1]
    np.testing.assert_allclose(
      step.epsilon, RHO * masked / NORM(step.clean), rtol=1e-9, atol=1e-15
    )
  changes = [
    t
    for t, (before, after) in enumerate(itertools.pairwise(used), 1)
    if (before != after).any()
  ]
  assert changes == [t for t in range(1, 12) if t % 3 == due]


@pytest.mark.parametrize('sparsity', [0.1, 0.95])
def test_masks_have_their_size_if_all_scores_are_equal(sparsity):
  params = {'a': jnp.ones((5, 2)), 'b': jnp.ones(9)}
  kept = masks.num_kept(sparsity, 19)
  found = masks.largest(jax.tree.map(masks.rank_bits, params), kept)
  np.testing.assert_array_equal(
    np.concatenate([np.ravel(leaf) for leaf in found.values()]),
    np.arange(19) < kept,
  )
  piece = perturbations.keep_dynamic(
    sparsity, refresh_every=1, total_steps=9, key=0
  )
  update, state = jax.jit(piece.update), piece.init(params)
  for _ in range(3):
    _, state = update(params, state)
    assert int(masks.count(state.mask)) == kept


def test_radius_and_policy_are_read_before_the_count_goes_on():
  radius = lambda t: 0.1 * (t + 1).astype(float)
  method = optax_sam.look_sam(radius, period=3)
  lengths = [NORM(step.epsilon) for step in replayed(method)]
  expected = [0.1 * (t + 1) if t % 3 == 0 else 0 for t in range(12)]
  np.testing.assert_allclose(lengths, expected, rtol=1e-10)


def test_small_gradients_are_scaled_too():
  method, zero = optax_sam.sam(0.05), jnp.zeros(())
  epsilon, _ = method.update(
    zero + 1e-8, method.init(zero), zero, grad_fn=lambda p: p
  )
  np.testing.assert_allclose(epsilon, 0.05, rtol=1.1e-4)


FACTORS = {
  'sam': (optax_sam.sam, True),
  'asam': (optax_sam.asam, True),
  'friendly_sam': (optax_sam.friendly_sam, True),
  'gsam': (optax_sam.gsam, True),
  'wsam': (optax_sam.wsam, True),
  'look_sam': (functools.partial(optax_sam.look_sam, period=2), True),
  'ae_look_sam': (
    functools.partial(optax_sam.ae_look_sam, total_steps=12),
    True,
  ),
  'unnormalized_sam': (optax_sam.unnormalized_sam, False),
  'fisher_sam': (optax_sam.fisher_sam, False),
  'look_layer_sam': (optax_sam.look_layer_sam, False),
  'le_sam': (optax_sam.le_sam, False),
  'z_sharp': (optax_sam.z_sharp, True),
  'momentum_sam': (optax_sam.momentum_sam, True),
  'async_sam': (optax_sam.async_sam, True),
  'cr_sam': (optax_sam.cr_sam, True),
  'eigen_sam': (functools.partial(optax_sam.eigen_sam, key=0), True),
}


@pytest.mark.parametrize('name', FACTORS)
def test_factors_on_the_loss(name):
  """The direction carries it, and epsilon with four exceptions does not."""
  build, is_free = FACTORS[name]
  recording, method = Recording('P3_sam_davda54'), build(0.1)
  starts = jax.vmap(recording.tree)(jnp.asarray(recording['w'][:-1]))

  @jax.jit
  def directions(factor):
    loss = lambda p: factor * recording.losses(p, recording.batch(0))[0]

    def step(state, params):
      direction, state = method.update(
        jax.grad(loss)(params), state, params, value_fn=loss
      )
      return state, direction['layer']['kernel'] / factor

    start = jax.tree.map(lambda x: x[0], starts)
    return jax.lax.scan(step, method.init(start), starts)[1]

  once, eightfold = directions(1.0), directions(8.0)
  is_same = bool(np.allclose(once, eightfold, rtol=1e-10, atol=1e-13))
  assert is_same == is_free
