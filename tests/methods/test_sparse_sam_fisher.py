"""Sparse SAM by Fisher information."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import perturbations
from optax_sam.trees import sparse_masks
from tests.conformance.reference import Recording, Replay
from tests.methods import checks
from tests.methods.masks import (
  assert_recorded_perturbations,
  mask_of,
  masks_of_run,
  top_of,
)
from tests.oracles import sparse_sam_fisher
from tests.oracles.problems import NETWORK

FISHER = optax_sam.sparse_sam_fisher
OFTEN = {'refresh_every': 2}
RECORDED = ['P1_ssamf50_mipeng', 'P1_ssamf90_mipeng']

test_follows_the_rule = checks.follows(sparse_sam_fisher.CASES)
test_is_base = checks.is_base(
  FISHER, {'rho': 0.0, **OFTEN}, {'sparsity': 1, **OFTEN}
)
test_is_sam = checks.is_sam(FISHER, {'sparsity': 0.0, **OFTEN})


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('sparsity', 'num_samples'), [(0.25, 1), (0.25, 10), (0.7, 37), (0.7, 128)]
)
def test_mask_is_that_of_brute_force(sparsity, num_samples):
  """Also where the samples make two chunks of 16 and a remainder."""
  method = FISHER(sparsity=sparsity, num_samples=num_samples, refresh_every=2)
  mask = None
  for t, (w, found) in enumerate(masks_of_run(method, 4)):
    if t % 2 == 0:
      batch = NETWORK.batch(t)
      squares = [
        NETWORK.gradient(w, {k: v[i : i + 1] for k, v in batch.items()}) ** 2
        for i in range(min(num_samples, NETWORK.examples))
      ]
      mask = np.zeros(49, bool)
      kept = sparse_masks.num_kept(sparsity, 49)
      mask[np.argsort(-np.sum(squares, axis=0), kind='stable')[:kept]] = True
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize('sparsity', [0.1, 0.95])
def test_masks_have_their_size_if_all_scores_are_equal(sparsity):
  params = {'a': jnp.ones((5, 2)), 'b': jnp.ones(9)}
  kept = sparse_masks.num_kept(sparsity, 19)
  bits = jax.tree.map(sparse_masks.rank_bits, params)
  found = sparse_masks.largest(bits, kept)
  np.testing.assert_array_equal(
    np.concatenate([np.ravel(leaf) for leaf in found.values()]),
    np.arange(19) < kept,
  )


def test_counts_are_exact_where_floats_slip():
  assert int((1 - 0.9) * 10) == 0
  assert sparse_masks.num_kept(0.9, 10) == 1


def test_order_of_the_pieces_decides_about_the_radius():
  gradient = {'w': jnp.array([3.0, 4.0, 1.0, 2.0]).reshape(4, 1)}
  mask = perturbations.keep_n_of_m(1, 2)
  scale = perturbations.scale_to_radius(1.0)
  lengths = []
  for pieces in ((scale, mask), (mask, scale)):
    tx = optax.chain(*pieces)
    epsilon, _ = tx.update(gradient, tx.init(gradient))
    lengths.append(float(optax.tree.norm(epsilon)))
  np.testing.assert_allclose(lengths, [np.sqrt(20 / 30), 1.0], rtol=1e-6)


@pytest.mark.parametrize(
  ('n', 'm', 'message'),
  [
    (3, 2, 'm must be at least 3, got 2'),
    (0, 2, 'n must be at least 1, got 0'),
    (1, 2.0, 'm must be a Python integer, got 2.0'),
    ('2', 4, "n must be a Python integer, got '2'"),
  ],
)
def test_groups_that_cannot_be(n, m, message):
  with pytest.raises(ValueError, match=rf'^{message}'):
    perturbations.keep_n_of_m(n, m)


def test_groups_of_convolutions_run_along_their_inputs():
  """For want of a transpose, groups of the program run along outputs too."""
  score = np.random.default_rng(0).random((3, 3, 4, 8), np.float32)
  found = np.asarray(sparse_masks.n_of_m(jnp.asarray(score), 2, 4))
  for unit in range(8):
    groups = score[..., unit].reshape(-1, 4)
    largest = np.sort(groups, axis=1)[:, -2:-1]
    np.testing.assert_array_equal(
      found[..., unit].reshape(-1, 4), groups >= largest
    )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', RECORDED)
def test_mask_is_the_top_of_the_recorded_scores(name):
  recording = Recording(name)
  sparsity = float(recording.settings['settings']['sparsity'])
  for step, scores, kept in zip(
    recording['fisher_update_step'],
    recording['fisher'],
    recording['fisher_keep_num'],
    strict=True,
  ):
    assert sparse_masks.num_kept(sparsity, scores.size) == kept
    np.testing.assert_array_equal(
      top_of(scores, kept), recording['mask_next'][step].astype(bool)
    )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', RECORDED)
def test_masked_perturbation_keeps_the_norm_of_the_full_gradient(name):
  assert_recorded_perturbations(name, FISHER(0.05, refresh_every=99))


def test_recorded_groups_run_along_the_inputs():
  """Groups of 4 in a row of fc2's (out, in) weight, which has 8 inputs."""
  recording = Recording('P1_ssamfnm24_mipeng2')
  for step, scores in zip(
    recording['fisher_update_step'], recording['fisher'], strict=True
  ):
    kernel = recording.tree(scores)['fc2']['kernel']
    recorded = recording.tree(recording['mask_next'][step])
    found = sparse_masks.n_of_m(kernel, 2, 4)
    np.testing.assert_array_equal(found, recorded['fc2']['kernel'].astype(bool))
  # 6 inputs and groups of 4: theirs straddle two units, ours are none.
  assert recorded['fc1']['kernel'].sum() == 24
  for leaf in recorded['fc1'].values():
    assert sparse_masks.n_of_m(leaf, 2, 4).all()


@pytest.mark.usefixtures('float64')
def test_first_step_is_perturbed():
  """The program starts with an empty mask; ours refreshes, then uses."""
  recording = Recording('P1_ssamf50_mipeng')
  assert not recording['mask'][0].any()
  method = FISHER(0.05, refresh_every=4)
  first = next(Replay(recording, method, watched=True).run())
  assert np.count_nonzero(first.epsilon) == recording['fisher_keep_num'][0]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('num_samples', [16, 3])
def test_fisher_information_holds_no_leftover_gradient(num_samples):
  """The program squares the first example's gradient with the step's on it.

  And it can't do with fewer than ten examples.
  """
  recording = Recording('P1_ssamf50_mipeng')
  rows = recording['fisher_sample_index'][0]
  x, y = recording.problem['X'].reshape(-1, 6), recording.problem['y'].ravel()
  batch = {'x': jnp.asarray(x[rows]), 'y': jnp.asarray(y[rows])}
  params = recording.tree(recording['w'][1])  # after the step
  jacobian = jax.jit(jax.jacobian(recording.losses))(params, batch)
  gradients = np.array(
    [
      recording.flat(jax.tree.map(lambda g, i=i: g[i], jacobian))
      for i in range(len(rows))
    ]
  )
  spoilt = gradients.copy()
  spoilt[0] += recording['g_final'][0]
  np.testing.assert_allclose(
    np.sum(spoilt**2, axis=0), recording['fisher'][0], rtol=1e-10
  )
  clean = np.sum(gradients[:num_samples] ** 2, axis=0)
  assert np.abs(clean - recording['fisher'][0]).max() > 0.1
  method = FISHER(0.05, num_samples=num_samples, refresh_every=1)
  _, state = jax.jit(method.update)(
    recording.tree(recording['g'][1]),
    method.init(params),
    params,
    per_example_value_fn=jax.tree_util.Partial(recording.losses),
    batch=batch,
  )
  mask = recording.flat(mask_of(state))
  np.testing.assert_array_equal(
    np.flatnonzero(mask), np.sort(np.argsort(-clean)[: mask.sum()])
  )
