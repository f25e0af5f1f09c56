"""Friendly SAM."""

import numpy as np
import pytest

import optax_sam
from optax_sam import perturbations
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.oracles import friendly_sam

SAM = optax_sam.friendly_sam

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
test_is_sam = checks.is_sam(
  SAM, {'sigma': 0.0}, {'sigma': 0.0, 'order': 'official'}
)
test_leaf_without_gradient = checks.leaf_without_gradient(SAM)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('sigma', 'official'), [(1.0, 1.0), (0.5, 0.5 * 0.9 / (1 - 0.5 * 0.1))]
)
def test_both_orders_give_the_same_direction(sigma, official):
  """The averages are equal. Below sigma = 1, sigma is converted."""
  assert sigma == 1 or official == pytest.approx(0.4737, abs=5e-5)
  recording = Recording('P1_fsam09_nblt')
  gradient, ema = recording['g'][3], recording['fsam_m'][2]
  found = []
  for order, factor in (('paper', sigma), ('official', official)):
    perturbation = perturbations.subtract_ema(0.9, factor, order=order)
    state = checks.with_fields(
      perturbation.init(recording.tree(ema)),
      ema=recording.tree(ema),
      started=np.ones((), bool),
    )
    noise, state = perturbation.update(recording.tree(gradient), state)
    noise = recording.flat(noise)
    found.append(noise / np.linalg.norm(noise))
    np.testing.assert_allclose(
      recording.flat(state.ema), recording['fsam_m'][3], atol=1e-14
    )
  np.testing.assert_allclose(*found, atol=1e-12)
