"""Rules of programs whose whole runs differ from ours on purpose.

Recorded random draws, scores and gradients are fed to one rule at a time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import masks, numerics, perturbations, selections
from tests.conformance.reference import Recording

pytestmark = pytest.mark.usefixtures('float64')


def top_of(scores, k):
  bits = masks.rank_bits(jnp.asarray(scores, jnp.float32))
  return np.asarray(masks.largest([bits], int(k))[0])


@pytest.mark.parametrize('name', ['P1_ssamf50_mipeng', 'P1_ssamf90_mipeng'])
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


@pytest.mark.parametrize(
  'name',
  [
    'P1_ssamf50_mipeng',
    'P1_ssamf90_mipeng',
    'P1_ssamd50_mipeng',
    'P3_ssamd50_mipeng',
  ],
)
def test_masked_perturbation_keeps_the_norm_of_the_full_gradient(name):
  """Theirs has a stabilizer of 1e-7, ours of 1e-12: equal to 1e-6."""
  recording = Recording(name)
  for t in range(recording.steps):
    gradient = recording.tree(recording['g'][t])
    epsilon = recording.flat(numerics.scale_to(0.05, gradient))
    np.testing.assert_allclose(
      epsilon * recording['mask'][t], recording['eps'][t], rtol=0, atol=1e-6
    )


def test_the_program_starts_with_an_empty_mask_and_ours_does_not():
  """Their first step is the base optimizer's; ours refreshes, then uses."""
  recording = Recording('P1_ssamf50_mipeng')
  assert not recording['mask'][0].any()
  params = recording.tree(recording['w'][0])
  piece = perturbations.keep_top_fisher(0.5, refresh_every=4)
  state = piece.init(params)
  assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(state.mask))


def test_n_of_m_groups_run_along_the_inputs():
  """Groups of fc2's (out, in) weight; fc1 has 6 inputs, no multiple of 4."""
  recording = Recording('P1_ssamfnm24_mipeng2')
  for step, scores in zip(
    recording['fisher_update_step'], recording['fisher'], strict=True
  ):
    kernel = recording.tree(scores)['fc2']['kernel']
    recorded = recording.tree(recording['mask_next'][step])['fc2']['kernel']
    found = masks.n_of_m(kernel, 2, 4)
    np.testing.assert_array_equal(found, np.asarray(recorded, bool))


def test_dynamic_mask_starts_as_the_top_of_the_recorded_draws():
  for name in ('P1_ssamd50_mipeng', 'P3_ssamd50_mipeng'):
    recording = Recording(name)
    scores = recording['ssamd_init_scores']
    kept = masks.num_kept(0.5, scores.size)
    np.testing.assert_array_equal(
      top_of(scores, kept), recording['mask'][0].astype(bool)
    )


@pytest.mark.parametrize('name', ['P1_ssamd50_mipeng', 'P3_ssamd50_mipeng'])
def test_dynamic_renewal_with_the_recorded_counts(name):
  recording = Recording(name)
  for i, step in enumerate(recording['ssamd_update_step']):
    kept = top_of(
      recording['ssamd_death_scores'][i], recording['ssamd_keep_num'][i]
    )
    grown = top_of(
      recording['ssamd_growth_scores'][i], recording['ssamd_grow_num'][i]
    )
    np.testing.assert_array_equal(
      kept | grown, recording['mask_next'][step].astype(bool)
    )


def test_density_drifts_in_the_program_and_not_in_ours():
  recording = Recording('P1_ssamd50_mipeng')
  theirs = recording['mask'].sum(axis=1)
  assert len(set(theirs.tolist())) > 1
  params = recording.tree(recording['w'][0])
  piece = perturbations.keep_dynamic(
    0.5, refresh_every=4, total_steps=24, key=0
  )
  state = piece.init(params)
  for t in range(recording.steps):
    gradient = recording.tree(recording['g'][t])
    _, state = piece.update(gradient, state, params)
    assert int(masks.count(state.mask)) == masks.num_kept(0.5, 83) == 41


def test_esam_perturbs_whole_tensors_to_the_full_radius():
  recording = Recording('P1_esam_dydjw9')
  names = (
    ('fc1', 'kernel'),
    ('fc1', 'bias'),
    ('fc2', 'kernel'),
    ('fc2', 'bias'),
  )
  for t in range(recording.steps):
    gradient = recording.tree(recording['g'][t])
    for (layer, leaf), active in zip(
      names, recording['esam_tensor_active'][t], strict=True
    ):
      gradient[layer][leaf] = jnp.where(active, gradient[layer][leaf], 0)
    epsilon = recording.flat(numerics.scale_to(0.05 / 0.6, gradient))
    np.testing.assert_allclose(epsilon, recording['eps'][t], rtol=0, atol=1e-6)


def test_esam_keeps_the_example_that_a_strict_comparison_loses():
  """gamma=0.5 of 16 is 8 examples; the program keeps the 7 above the 8th."""
  recording = Recording('P1_esamb1_dydjw9')
  for t in range(recording.steps):
    before, after = (
      recording['esam_losses_before'][t],
      recording['esam_losses_after'][t],
    )
    rise = jnp.asarray(after - before)
    ours = set(np.asarray(selections.largest(rise, 8)).tolist())
    theirs = set(np.flatnonzero(recording['esam_selected'][t]).tolist())
    assert len(theirs) == 7
    assert theirs < ours
    strict = set(np.asarray(selections.largest(rise, 7)).tolist())
    assert strict == theirs
