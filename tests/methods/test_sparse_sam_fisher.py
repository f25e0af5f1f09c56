"""Sparse SAM by Fisher information."""

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
from tests.oracles import sparse_sam_fisher

FISHER = optax_sam.sparse_sam_fisher
OFTEN = {'refresh_every': 2}
RECORDED = ['P1_ssamf50_mipeng', 'P1_ssamf90_mipeng']

test_follows_the_rule = checks.follows(sparse_sam_fisher.CASES)
test_is_base = checks.is_base(FISHER, {'sparsity': 1, **OFTEN})
test_is_sam = checks.is_sam(FISHER, {'sparsity': 0.0, **OFTEN})


@pytest.mark.parametrize(
  ('n', 'm', 'message'),
  [
    (3, 2, 'm must be at least 3, got 2'),
    (0, 2, 'n must be at least 1, got 0'),
    (1, 2.0, 'm must be a Python integer, got 2.0'),
    ('2', 4, "n must be a Python integer, got '2'"),
  ],
)
def test_invalid_groups_raise(n, m, message):
  with pytest.raises(ValueError, match=rf'^{message}'):
    perturbations.keep_n_of_m(n, m)


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
  # 6 inputs and groups of 4: their groups span two units, ours skip the leaf.
  assert recorded['fc1']['kernel'].sum() == 24
  for leaf in recorded['fc1'].values():
    assert sparse_masks.n_of_m(leaf, 2, 4).all()


@pytest.mark.usefixtures('float64')
def test_fisher_information_excludes_the_gradient_of_the_step():
  """The published program adds the step's gradient to the first example's."""
  recording = Recording('P1_ssamf50_mipeng')
  rows = recording['fisher_sample_index'][0]
  x, y = recording.problem['X'].reshape(-1, 6), recording.problem['y'].ravel()
  batch = {'x': jnp.asarray(x[rows]), 'y': jnp.asarray(y[rows])}
  params = recording.tree(recording['w'][1])  # after the step
  jacobian = jax.jit(jax.jacobian(recording.losses))(params, batch)
  one = lambda i: recording.flat(jax.tree.map(lambda g: g[i], jacobian))
  gradients = np.array([one(i) for i in range(len(rows))])
  spoilt = gradients.copy()
  spoilt[0] += recording['g_final'][0]
  np.testing.assert_allclose(
    np.sum(spoilt**2, axis=0), recording['fisher'][0], rtol=1e-10
  )
  clean = np.sum(gradients**2, axis=0)
  assert np.abs(clean - recording['fisher'][0]).max() > 0.1
  method = FISHER(0.05, num_samples=len(rows), refresh_every=1)
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
