"""Where the authors' programs of sparse SAM are not followed, and why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import masks, perturbations
from tests.conformance.reference import Recording, Replay

pytestmark = pytest.mark.usefixtures('float64')


def test_first_step_of_fisher_is_perturbed():
  """The program starts with an empty mask; ours refreshes, then uses."""
  recording = Recording('P1_ssamf50_mipeng')
  assert not recording['mask'][0].any()
  method = optax_sam.sparse_sam_fisher(0.05, refresh_every=4)
  first = next(Replay(recording, method, watched=True).run())
  assert np.count_nonzero(first.epsilon) == recording['fisher_keep_num'][0]


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
  method = optax_sam.sparse_sam_fisher(
    0.05, num_samples=num_samples, refresh_every=1
  )
  _, state = jax.jit(method.update)(
    recording.tree(recording['g'][1]),
    method.init(params),
    params,
    per_example_value_fn=jax.tree_util.Partial(recording.losses),
    batch=batch,
  )
  mask = recording.flat(state.perturbation[1].mask)
  np.testing.assert_array_equal(
    np.flatnonzero(mask), np.sort(np.argsort(-clean)[: mask.sum()])
  )


def test_counts_are_exact_where_floats_slip():
  assert int((1 - 0.9) * 10) == 0
  assert masks.num_kept(0.9, 10) == 1


def test_inputs_that_cannot_be_grouped_are_perturbed_whole():
  """6 inputs and groups of 4: theirs straddle two units, ours are none."""
  recording = Recording('P1_ssamfnm24_mipeng2')
  step = recording['fisher_update_step'][0]
  theirs = recording.tree(recording['mask_next'][step])
  assert theirs['fc1']['kernel'].sum() == 24
  assert masks.n_of_m(theirs['fc1']['kernel'], 2, 4).all()
  assert masks.n_of_m(theirs['fc1']['bias'], 2, 4).all()


def test_groups_of_convolutions_run_along_their_inputs():
  """For want of a transpose, theirs run along the outputs too."""
  score = np.random.default_rng(0).random((3, 3, 4, 8))
  found = np.asarray(masks.n_of_m(jnp.asarray(score), 2, 4))
  for unit in range(8):
    groups = score[..., unit].reshape(-1, 4)
    largest = np.sort(groups, axis=1)[:, -2:-1]
    np.testing.assert_array_equal(
      found[..., unit].reshape(-1, 4), groups >= largest
    )


def test_no_density_is_lost_where_little_is_left_to_grow():
  """The program drops a share of 0.5 of 80 % and can grow but 20 %."""
  piece = perturbations.keep_dynamic(
    0.2, drop_rate=0.5, refresh_every=1, total_steps=9, key=0
  )
  gradient = jnp.arange(1.0, 11.0)
  state = piece.init(gradient)
  before = state.mask
  _, state = jax.jit(piece.update)(gradient, state)
  assert masks.count(before) == masks.count(state.mask) == 8
  assert masks.count(state.mask & ~before) == 2


def test_weights_that_decide_are_not_perturbed():
  piece = perturbations.keep_dynamic(
    0.5, refresh_every=1, total_steps=9, key=0, drop='weight', growth='weight'
  )
  weights, gradient = jnp.array([1.0, 2.0, 3.0, 4.0]), 99 * jnp.ones(4)
  state = piece.init(weights)
  state = state._replace(mask=jnp.array([True, True, False, False]))
  _, state = jax.jit(piece.update)(gradient, state, weights)
  assert state.mask.tolist() == [False, True, False, True]
