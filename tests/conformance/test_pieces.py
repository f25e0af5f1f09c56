"""Rules of programs whose whole runs differ from ours on purpose.

Recorded random draws, scores and masks are fed to one rule at a time. Where
the programs are not followed is in `test_differences.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import masks, perturbations, selections
from tests.conformance.reference import Recording

pytestmark = pytest.mark.usefixtures('float64')

FISHER = ['P1_ssamf50_mipeng', 'P1_ssamf90_mipeng']
DYNAMIC = ['P1_ssamd50_mipeng', 'P3_ssamd50_mipeng']


def top_of(scores, k):
  bits = masks.rank_bits(jnp.asarray(scores, jnp.float32))
  return np.asarray(masks.largest([bits], int(k))[0])


@pytest.mark.parametrize('name', FISHER)
def test_fisher_mask_is_the_top_of_the_recorded_scores(name):
  recording = Recording(name)
  sparsity = float(recording.settings['settings']['sparsity'])
  for step, scores, kept in zip(
    recording['fisher_update_step'],
    recording['fisher'],
    recording['fisher_keep_num'],
    strict=True,
  ):
    assert masks.num_kept(sparsity, scores.size) == kept
    np.testing.assert_array_equal(
      top_of(scores, kept), recording['mask_next'][step].astype(bool)
    )


def _sparse_method(name):
  if name in DYNAMIC:
    return optax_sam.sparse_sam_dynamic(
      0.05, refresh_every=99, total_steps=99, key=0
    )
  return optax_sam.sparse_sam_fisher(0.05, refresh_every=99)


@pytest.mark.parametrize('name', FISHER + DYNAMIC)
def test_masked_perturbation_keeps_the_norm_of_the_full_gradient(name):
  """Theirs has a stabilizer of 1e-7, ours of 1e-12: equal to 1e-6."""
  recording, method = Recording(name), _sparse_method(name)

  @jax.jit
  def epsilon(params, gradient, mask):
    state = method.init(params)
    scale, sparse = state.perturbation
    # Between two refreshes, where the recorded mask is used as it is.
    sparse = sparse._replace(mask=mask, count=jnp.ones_like(sparse.count))
    state = state._replace(perturbation=(scale, sparse))
    point, _ = method.update(
      gradient,
      state,
      params,
      grad_fn=lambda p: p,
      per_example_value_fn=recording.losses,
      batch=recording.batch(0),
    )
    return jax.tree.map(jnp.subtract, point, params)

  for t in range(recording.steps):
    found = epsilon(
      recording.tree(recording['w'][t]),
      recording.tree(recording['g'][t]),
      recording.tree(recording['mask'][t].astype(bool)),
    )
    np.testing.assert_allclose(
      recording.flat(found), recording['eps'][t], rtol=0, atol=1e-6
    )


def test_n_of_m_groups_run_along_the_inputs():
  """Groups of 4 in a row of fc2's (out, in) weight, which has 8 inputs."""
  recording = Recording('P1_ssamfnm24_mipeng2')
  for step, scores in zip(
    recording['fisher_update_step'], recording['fisher'], strict=True
  ):
    kernel = recording.tree(scores)['fc2']['kernel']
    recorded = recording.tree(recording['mask_next'][step])['fc2']['kernel']
    found = masks.n_of_m(kernel, 2, 4)
    np.testing.assert_array_equal(found, np.asarray(recorded, bool))


@pytest.mark.parametrize('name', DYNAMIC)
def test_dynamic_mask_starts_as_the_top_of_the_recorded_draws(name):
  recording = Recording(name)
  scores = recording['ssamd_init_scores']
  np.testing.assert_array_equal(
    top_of(scores, masks.num_kept(0.5, scores.size)),
    recording['mask'][0].astype(bool),
  )


@pytest.mark.parametrize('name', DYNAMIC)
def test_dynamic_renewal_with_the_recorded_counts(name):
  """Drops the smallest of the active, grows the largest of the others."""
  recording = Recording(name)
  for i, step in enumerate(recording['ssamd_update_step']):
    before = jnp.asarray(recording['mask'][step], bool)
    kept = int(recording['ssamd_keep_num'][i])
    grown = int(recording['ssamd_grow_num'][i])
    renewed = np.asarray(recording['mask_next'][step], bool)
    dead = masks.rank_bits(jnp.abs(recording['g'][step]))
    draws = masks.rank_bits(jnp.asarray(recording['ssamd_random_draws'][i]))
    if kept + grown == recording['mask'][step].sum():
      found = masks.drop_and_grow(before, dead, draws, grown)
      np.testing.assert_array_equal(found, renewed)
    # With one of its counts off, call by call.
    calls = (
      top_of(recording['ssamd_death_scores'][i], kept),
      top_of(recording['ssamd_growth_scores'][i], grown),
    )
    np.testing.assert_array_equal(np.logical_or(*calls), renewed)


@pytest.mark.parametrize('name', DYNAMIC)
def test_as_many_entries_are_grown_as_recorded(name):
  """Their rate counts epochs of 4 steps, ours steps: equal at a renewal."""
  recording = Recording(name)
  settings = recording.settings['settings']
  piece = perturbations.keep_dynamic(
    settings['sparsity'],
    drop_rate=settings['drop_rate'],
    refresh_every=4,
    total_steps=4 * settings['T_end'],
    key=0,
  )
  state = piece.init(recording.tree(recording['w'][0]))
  update = jax.jit(piece.update)
  grown = {}
  for t in range(recording.steps):
    before = recording.flat(state.mask)
    _, state = update(recording.tree(recording['g'][t]), state)
    after = recording.flat(state.mask)
    # Exactly as many as wanted, where the count of the program drifts.
    assert after.sum() == before.sum() == masks.num_kept(0.5, after.size)
    if (after & ~before).any():
      grown[t] = int((after & ~before).sum())
  recorded = (recording['ssamd_update_step'], recording['ssamd_grow_num'])
  assert grown == dict(zip(*(x.tolist() for x in recorded), strict=True))
  assert len(set(recording['mask'].sum(axis=1).tolist())) > 1


def test_esam_perturbs_whole_tensors_to_the_full_radius():
  """Also at their first step, where every tensor is kept."""
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


def test_k_sam_takes_both_sets_of_one_ranking():
  recording = Recording('P1_ksam_numpy')
  for t in range(recording.steps):
    params, batch = recording.tree(recording['w'][t]), recording.batch(t)
    losses = recording.losses(params, batch)
    np.testing.assert_allclose(losses, recording['ksam_losses'][t], rtol=1e-13)
    rows = np.asarray(selections.largest(losses, 8))
    for chosen, key in ((rows[:4], 'ascent'), (rows, 'descent')):
      np.testing.assert_array_equal(
        np.sort(chosen), recording[f'ksam_idx_{key}'][t]
      )
