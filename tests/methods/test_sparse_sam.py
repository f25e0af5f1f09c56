"""Sparse SAM: how many entries are perturbed, and which."""

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
from tests.oracles import sparse_sam
from tests.oracles.problems import NETWORK

FISHER, DYNAMIC = optax_sam.sparse_sam_fisher, optax_sam.sparse_sam_dynamic
OFTEN = {'refresh_every': 2}
DRAWN = {'refresh_every': 2, 'total_steps': 12, 'key': 0}

test_follows_the_rule = checks.follows(sparse_sam.CASES)
test_fisher_is_base = checks.is_base(
  FISHER, {'rho': 0.0, **OFTEN}, {'sparsity': 1, **OFTEN}
)
test_dynamic_is_base = checks.is_base(
  DYNAMIC, {'rho': 0.0, **DRAWN}, {'sparsity': 1.0, **DRAWN}
)
test_fisher_is_sam = checks.is_sam(FISHER, {'sparsity': 0.0, **OFTEN})
test_dynamic_is_sam = checks.is_sam(DYNAMIC, {'sparsity': 0.0, **DRAWN})


def mask_of(state):
  return optax.tree_utils.tree_get(state, 'mask')


def masks_of_run(method, steps=12):
  """Trains on the network; yields (parameters before, mask after) of steps."""
  step = jax.jit(NETWORK.training_step(optax.chain(method, optax.sgd(0.05))))
  params = NETWORK.params()
  state = optax.chain(method, optax.sgd(0.05)).init(params)
  for t in range(steps):
    before = NETWORK.flat(params)
    batch = jax.tree.map(
      lambda x: jnp.asarray(x, float), NETWORK.batch(t % NETWORK.steps)
    )
    params, state = step(params, state, batch)
    yield before, NETWORK.flat(mask_of(state)).astype(bool)


@pytest.mark.parametrize('sparsity', [0.1, 0.2, 0.5, 0.8, 0.95])
def test_density_of_the_dynamic_mask_never_changes(sparsity):
  """Also where more is dropped than lies outside of the mask."""
  method = DYNAMIC(sparsity=sparsity, refresh_every=1, total_steps=12, key=0)
  seen = set()
  for _, mask in masks_of_run(method):
    assert mask.sum() == sparse_masks.num_kept(sparsity, 49)
    seen.add(mask.tobytes())
  # Of two entries, one moves at the first step only.
  assert len(seen) > 1 or sparsity == 0.95


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('sparsity', 'num_samples'), [(0.25, 1), (0.25, 10), (0.7, 37), (0.7, 128)]
)
def test_fisher_mask_is_that_of_brute_force(sparsity, num_samples):
  """Also where the samples make two chunks of 16 and a remainder."""
  method = FISHER(
    sparsity=sparsity, num_samples=num_samples, refresh_every=2
  )
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
  before, after = renewed(piece, gradient, count=jnp.int32(1))
  assert int(np.sum(before & after)) == 3


def test_weights_that_decide_are_not_perturbed():
  _, after = renewed(
    dynamic(0.5, drop='weight', growth='weight'),
    99 * jnp.ones(4),
    jnp.array([1.0, 2.0, 3.0, 4.0]),
    mask=jnp.array([True, True, False, False]),
  )
  assert after.tolist() == [False, True, False, True]


def test_counts_are_exact_where_floats_slip():
  assert int((1 - 0.9) * 10) == 0
  assert sparse_masks.num_kept(0.9, 10) == 1


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


# What the program of the authors recorded, one rule at a time.

OF_FISHER = ['P1_ssamf50_mipeng', 'P1_ssamf90_mipeng']
OF_DYNAMIC = ['P1_ssamd50_mipeng', 'P3_ssamd50_mipeng']


def top_of(scores, k):
  bits = sparse_masks.rank_bits(jnp.asarray(scores, jnp.float32))
  return np.asarray(sparse_masks.largest([bits], int(k))[0])


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', OF_FISHER)
def test_fisher_mask_is_the_top_of_the_recorded_scores(name):
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
@pytest.mark.parametrize('name', OF_FISHER + OF_DYNAMIC)
def test_masked_perturbation_keeps_the_norm_of_the_full_gradient(name):
  """Theirs has a stabilizer of 1e-7, ours of 1e-12: equal to 1e-6."""
  recording = Recording(name)
  given = {'refresh_every': 99}
  method = FISHER(0.05, **given)
  if name in OF_DYNAMIC:
    method = DYNAMIC(0.05, **given, total_steps=99, key=0)

  @jax.jit
  def epsilon(params, gradient, mask):
    # Between two refreshes, where the recorded mask is used as it is.
    state = checks.with_fields(
      method.init(params), mask=mask, count=jnp.int32(1)
    )
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


@pytest.mark.parametrize('name', OF_DYNAMIC)
def test_dynamic_mask_starts_as_the_top_of_the_recorded_draws(name):
  recording = Recording(name)
  scores = recording['ssamd_init_scores']
  np.testing.assert_array_equal(
    top_of(scores, sparse_masks.num_kept(0.5, scores.size)),
    recording['mask'][0].astype(bool),
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', OF_DYNAMIC)
def test_dynamic_renewal_with_the_recorded_counts(name):
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
@pytest.mark.parametrize('name', OF_DYNAMIC)
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


@pytest.mark.usefixtures('float64')
def test_first_step_of_fisher_is_perturbed():
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
