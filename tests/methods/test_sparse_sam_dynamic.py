"""Sparse SAM with a mask that is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import perturbations
from optax_sam.trees import sparse_masks
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.methods.masks import (
  assert_recorded_perturbations,
  mask_of,
  top_of,
)
from tests.oracles import sparse_sam_dynamic

DYNAMIC = optax_sam.sparse_sam_dynamic
DRAWN = {'refresh_every': 2, 'total_steps': 12, 'key': 0}
RECORDED = ['P1_ssamd50_mipeng', 'P3_ssamd50_mipeng']

test_follows_the_rule = checks.follows(sparse_sam_dynamic.CASES)
test_is_base = checks.is_base(DYNAMIC, {'sparsity': 1.0, **DRAWN})
test_is_sam = checks.is_sam(DYNAMIC, {'sparsity': 0.0, **DRAWN})


def renewed(piece, gradient, weights=None, **changes):
  """Returns the mask before and after one renewal."""
  like = gradient if weights is None else weights
  state = checks.with_fields(piece.init(like), **changes)
  _, after = jax.jit(piece.update)(gradient, state, weights)
  return mask_of(state), mask_of(after)


def dynamic(sparsity, **given):
  given = {'refresh_every': 1, 'total_steps': 9, 'key': 0, **given}
  return perturbations.keep_dynamic(sparsity, **given)


def test_no_more_entries_are_dropped_than_are_active():
  """An injected share above 1 can't be refused, but the mask keeps its size."""
  piece = dynamic(0.75, drop_rate=jnp.float32(2.5), total_steps=10)
  before, after = renewed(piece, jnp.arange(1.0, 9.0))
  assert int(after.sum()) == 2
  assert not np.any(before & after)


def test_no_density_is_lost_where_little_is_left_to_grow():
  """The program drops a share of 0.5 of 80 % and can grow but 20 %."""
  piece = dynamic(0.2, drop_rate=0.5)
  before, after = renewed(piece, jnp.arange(1.0, 11.0))
  assert before.sum() == after.sum() == 8
  assert (after & ~before).sum() == 2


@pytest.mark.usefixtures('float64')
def test_share_that_moves_is_computed_in_the_precision_of_the_parameters():
  """Halfway, a quarter of 4 entries moves; single precision rounds it away."""
  piece = dynamic(0.5, total_steps=2)
  gradient = jnp.arange(1.0, 9.0, dtype=jnp.float64)
  before, after = renewed(piece, gradient, step_count=jnp.int32(1))
  assert int(np.sum(before & after)) == 3


def test_weights_that_decide_are_not_perturbed():
  _, after = renewed(
    dynamic(0.5, drop='weight', growth='weight'),
    99 * jnp.ones(4),
    jnp.array([1.0, 2.0, 3.0, 4.0]),
    mask=jnp.array([True, True, False, False]),
  )
  assert after.tolist() == [False, True, False, True]


@pytest.mark.parametrize('name', RECORDED)
def test_mask_starts_as_the_top_of_the_recorded_draws(name):
  recording = Recording(name)
  scores = recording['ssamd_init_scores']
  np.testing.assert_array_equal(
    top_of(scores, sparse_masks.num_kept(0.5, scores.size)),
    recording['mask'][0].astype(bool),
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', RECORDED)
def test_masked_perturbation_keeps_the_norm_of_the_full_gradient(name):
  method = DYNAMIC(0.05, refresh_every=99, total_steps=99, key=0)
  assert_recorded_perturbations(name, method)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', RECORDED)
def test_renewal_with_the_recorded_counts(name):
  """Drops the smallest of the active, grows the largest of the others."""
  recording = Recording(name)
  for i, step in enumerate(recording['ssamd_update_step']):
    before = jnp.asarray(recording['mask'][step], bool)
    kept = int(recording['ssamd_keep_num'][i])
    grown = int(recording['ssamd_grow_num'][i])
    after = np.asarray(recording['mask_next'][step], bool)
    dead = sparse_masks.rank_bits(jnp.abs(recording['g'][step]))
    draws = jnp.asarray(recording['ssamd_random_draws'][i])
    draws = sparse_masks.rank_bits(draws)
    if kept + grown == recording['mask'][step].sum():
      found = sparse_masks.drop_and_grow(before, dead, draws, grown)
      np.testing.assert_array_equal(found, after)
    # With one of its counts off, call by call.
    calls = (
      top_of(recording['ssamd_death_scores'][i], kept),
      top_of(recording['ssamd_growth_scores'][i], grown),
    )
    np.testing.assert_array_equal(np.logical_or(*calls), after)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', RECORDED)
def test_as_many_entries_are_grown_as_recorded(name):
  """Their rate counts epochs of 4 steps, ours steps: equal at a renewal."""
  recording = Recording(name)
  settings = recording.settings['settings']
  piece = dynamic(
    settings['sparsity'],
    drop_rate=settings['drop_rate'],
    refresh_every=4,
    total_steps=4 * settings['T_end'],
  )
  state = piece.init(recording.tree(recording['w'][0]))
  update = jax.jit(piece.update)
  grown = {}
  for t in range(recording.steps):
    before = recording.flat(mask_of(state))
    _, state = update(recording.tree(recording['g'][t]), state)
    after = recording.flat(mask_of(state))
    # Exactly as many as wanted, where the count of the program drifts.
    kept = sparse_masks.num_kept(0.5, after.size)
    assert after.sum() == before.sum() == kept
    if (after & ~before).any():
      grown[t] = int((after & ~before).sum())
  recorded = (recording['ssamd_update_step'], recording['ssamd_grow_num'])
  assert grown == dict(zip(*(x.tolist() for x in recorded), strict=True))
  assert len(set(recording['mask'].sum(axis=1).tolist())) > 1
