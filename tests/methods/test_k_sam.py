"""K-SAM, and the selection of the examples with the largest losses."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import selections
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.oracles import k_sam
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(k_sam.CASES)
test_is_sam = checks.is_sam(optax_sam.k_sam, {'ascent': 1.0, 'descent': 1.0})


@pytest.mark.usefixtures('float64')
def test_without_radius_is_ordered_sgd():
  given = {'rho': 0.0, 'ascent': 4, 'descent': 8}
  right = optax.chain(optax_sam.ordered_sgd(k=8), NETWORK.base())
  checks.equal(optax_sam.k_sam, given, right)


@pytest.mark.usefixtures('float64')
def test_both_sets_are_selected_from_one_recorded_ranking():
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


@pytest.mark.parametrize(
  ('size', 'batch_size', 'expected'),
  [(3, 7, 3), (9, 7, 7), (0.5, 5, 2), (1 / 3, 8, 3), (0.01, 7, 1)],
)
def test_sizes_are_counts_or_rounded_fractions(size, batch_size, expected):
  assert selections.num_examples(size, batch_size) == expected


def test_non_finite_losses_rank_last_and_ties_by_position():
  scores = jnp.array([np.nan, 2.0, np.inf, 3.0, 2.0, -np.inf, -1.0])
  assert selections.largest(scores, 7).tolist() == [3, 1, 4, 6, 0, 2, 5]


test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  optax_sam.k_sam, ascent=1, descent=2
)


@pytest.mark.parametrize('shape', [(), (3,), (4, 1)])
def test_losses_that_are_not_per_example_raise(shape):
  with pytest.raises(ValueError, match=r'losses must hold one .* shape \(4,\)'):
    checks.first_direction(
      optax_sam.k_sam(ascent=1, descent=2), losses=jnp.zeros(shape)
    )
