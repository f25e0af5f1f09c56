"""Sparse perturbations: how many entries, and which."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import masks, perturbations

PARAMS = {
  'kernel': jnp.sin(jnp.arange(1.0, 13.0)).reshape(4, 3),
  'bias': jnp.zeros((3,)),
  'scale': jnp.float32(1.0),
}
SIZE = 16
BATCH = {
  'x': jnp.sin(1.7 * jnp.arange(40.0)).reshape(10, 4),
  'y': jnp.cos(jnp.arange(30.0)).reshape(10, 3),
}


def losses(params, batch):
  out = jnp.tanh(batch['x'] @ params['kernel'] + params['bias'][None])
  return jnp.sum(jnp.square(params['scale'] * out - batch['y']), axis=1)


def mask_of(state):
  return state.perturbation[1].mask


def run(method, steps, batch=BATCH):
  """Trains a few steps; yields (parameters before, state after) of each."""
  tx = optax.chain(method, optax.sgd(0.05))
  params, state = PARAMS, tx.init(PARAMS)

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda p: losses(p, batch).mean())(params)
    updates, state = tx.update(
      grads, state, params, per_example_value_fn=losses, batch=batch
    )
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    before = params
    params, state = step(params, state)
    yield before, state[0]


@pytest.mark.parametrize('sparsity', [0.1, 0.2, 0.5, 0.8, 0.95])
def test_density_of_the_dynamic_mask_never_changes(sparsity):
  """Also where more is dropped than lies outside of the mask."""
  method = optax_sam.sparse_sam_dynamic(
    sparsity=sparsity, refresh_every=1, total_steps=12, key=0
  )
  seen = set()
  for _, state in run(method, 12):
    mask = np.concatenate(
      [np.ravel(x) for x in jax.tree.leaves(mask_of(state))]
    )
    assert mask.sum() == masks.num_kept(sparsity, SIZE)
    seen.add(mask.tobytes())
  assert len(seen) > 1 or masks.num_kept(sparsity, SIZE) == 0


@pytest.mark.parametrize('num_samples', [1, 7, 10, 128])
@pytest.mark.parametrize('sparsity', [0.25, 0.7])
def test_fisher_mask_is_that_of_brute_force(sparsity, num_samples):
  method = optax_sam.sparse_sam_fisher(
    sparsity=sparsity, num_samples=num_samples, refresh_every=2
  )
  for step, (params, state) in enumerate(run(method, 4)):
    if step % 2:
      continue  # the mask of the step before
    jacobian = jax.jacobian(losses)(params, BATCH)
    scores = jax.tree.map(
      lambda g: jnp.sum(jnp.square(g[:num_samples]), axis=0), jacobian
    )
    kept = masks.num_kept(sparsity, SIZE)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scores)])
    expected = np.zeros(SIZE, bool)
    expected[np.argsort(-flat, kind='stable')[:kept]] = True
    found = [np.ravel(x) for x in jax.tree.leaves(mask_of(state))]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_fisher_information_sums_over_chunks_and_a_remainder():
  """37 examples: two chunks of 16 and five more."""
  keys = jax.random.split(jax.random.key(0))
  batch = {
    'x': jax.random.normal(keys[0], (37, 4)),
    'y': jax.random.normal(keys[1], (37, 3)),
  }
  method = optax_sam.sparse_sam_fisher(sparsity=0.5, refresh_every=1)
  ((params, state),) = run(method, 1, batch)
  jacobian = jax.jacobian(losses)(params, batch)
  scores = [jnp.ravel(jnp.sum(g**2, axis=0)) for g in jax.tree.leaves(jacobian)]
  order = np.argsort(-np.concatenate(scores))[:8]
  found = [np.ravel(x) for x in jax.tree.leaves(mask_of(state))]
  assert set(np.flatnonzero(np.concatenate(found))) == set(order.tolist())


def test_order_of_the_pieces_decides_about_the_radius():
  gradient = {'w': jnp.array([3.0, 4.0, 1.0, 2.0]).reshape(4, 1)}
  mask, scale = (
    perturbations.keep_n_of_m(1, 2),
    perturbations.scale_to_radius(1.0),
  )
  lengths = []
  for pieces in ((scale, mask), (mask, scale)):
    tx = optax.chain(*pieces)
    epsilon, _ = tx.update(gradient, tx.init(gradient))
    lengths.append(float(optax.tree.norm(epsilon)))
  np.testing.assert_allclose(lengths, [np.sqrt(20 / 30), 1.0], rtol=1e-6)


def test_radius_never_falls_below_its_minimum_during_warm_up():
  warm_up = optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 40, 0.1)
  radius = optax_sam.rho_like_learning_rate(
    warm_up, rho_max=0.6, rho_min=0.1, lr_max=1.0, lr_min=0.1
  )
  radii = [float(radius(t)) for t in range(41)]
  assert min(radii) == pytest.approx(0.1)
  assert max(radii) == pytest.approx(0.6)
