"""Friendly SAM."""

import functools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

import optax_sam
from optax_sam import perturbations
from tests.conformance.reference import Recording, Replay
from tests.methods import checks
from tests.methods.vectors import (
  ENTRIES,
  MAGNITUDES,
  SIZE,
  VECTORS,
  assert_near,
  flat,
  properties,
  tree_of,
)
from tests.oracles import friendly_sam

SAM = optax_sam.friendly_sam
DECAY, SIGMA = 0.75, 0.5

test_follows_the_rule = checks.follows(friendly_sam.CASES)
test_golden_values = checks.golden(
  SAM,
  friendly_sam.friendly_sam,
  ({}, (0.39779827, -0.26501876, -0.01017447, 0.90265972)),
  (
    {'order': 'official'},
    (0.39716683, -0.26803097, -0.01582834, 0.91114855),
  ),
  ({'sigma': 0.5}, (0.39815876, -0.26484792, -0.00850915, 0.90248141)),
)
test_is_base = checks.is_base(
  SAM, {'rho': 0.0}, {'rho': 0.0, 'order': 'official'}
)
test_is_sam = checks.is_sam(
  SAM, {'sigma': 0.0}, {'sigma': 0.0, 'order': 'official'}
)
test_factor_on_the_loss = checks.factor_on_the_loss(SAM, changes_epsilon=False)
test_leaf_without_gradient = checks.leaf_without_gradient(SAM)


@pytest.mark.usefixtures('float64')
def test_averages_the_gradient_as_it_is():
  """A popular port averages what is left after the subtraction."""
  recording = Recording('P1_fsam09_nblt')
  method = SAM(0.05, order='official')
  steps = list(Replay(recording, method).run(fed=True))
  ported, ours = np.zeros(83), np.zeros(83)
  for t in range(recording.steps):
    g, first = recording['g'][t], t == 0
    ported = g if first else 0.9 * ported + 0.1 * (g - ported)
    ours = g if first else 0.9 * ours + 0.1 * g
  found = optax.tree_utils.tree_get(steps[-1].state, 'ema')
  np.testing.assert_allclose(recording.flat(found), ours, rtol=0, atol=1e-14)
  assert np.abs(ported - ours).max() > 1e-3


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('sigma', 'official'), [(1.0, 1.0), (0.5, 0.5 * 0.9 / (1 - 0.5 * 0.1))]
)
def test_both_orders_have_one_direction(sigma, official):
  """For an equal average, at sigma = 1 and, translated, below."""
  assert sigma == 1 or official == pytest.approx(0.4737, abs=5e-5)
  recording = Recording('P1_fsam09_nblt')
  gradient, ema = recording['g'][3], recording['fsam_m'][2]
  found = []
  for order, share in (('paper', sigma), ('official', official)):
    piece = perturbations.subtract_ema(0.9, share, order=order)
    state = checks.with_fields(
      piece.init(recording.tree(ema)),
      ema=recording.tree(ema),
      started=np.ones((), bool),
    )
    noise, state = piece.update(recording.tree(gradient), state)
    noise = recording.flat(noise)
    found.append(noise / np.linalg.norm(noise))
    np.testing.assert_allclose(
      recording.flat(state.ema), recording['fsam_m'][3], atol=1e-14
    )
  np.testing.assert_allclose(*found, atol=1e-12)


@functools.cache
def noise_of(order, decay, sigma):
  piece = perturbations.subtract_ema(decay, sigma, order=order)
  return piece, jax.jit(lambda updates, state: piece.update(updates, state))


@pytest.mark.parametrize('order', ['paper', 'official'])
@properties
@given(hnp.arrays(np.float32, (4, SIZE), elements=ENTRIES), MAGNITUDES)
def test_noise_is_what_the_average_leaves(order, gradients, magnitude):
  piece, update = noise_of(order, DECAY, SIGMA)
  gradients = gradients * np.float32(magnitude)
  state = piece.init(tree_of(gradients[0]))
  m = np.zeros(SIZE)
  for t, g in enumerate(gradients):
    found, state = update(tree_of(g), state)
    before, m = m, DECAY * m + (1 - DECAY) * g
    if order == 'official' and t == 0:
      m = g.astype(np.float64)
    d = g - SIGMA * (m if order == 'paper' else before)
    assert_near(flat(found), d, gradients)
    assert_near(flat(state.ema), m, gradients)


@pytest.mark.parametrize('order', ['paper', 'official'])
@properties
@given(VECTORS)
def test_noise_of_a_gradient_that_never_changes(order, g):
  piece, update = noise_of(order, 0.5, 1.0)
  state, found = piece.init(tree_of(g)), []
  for _ in range(3):
    noise, state = update(tree_of(g), state)
    found.append(flat(noise))
  if order == 'official':
    np.testing.assert_array_equal(found, np.outer([1, 0, 0], g))
  else:
    assert_near(found, np.outer([0.5, 0.25, 0.125], g), g)
