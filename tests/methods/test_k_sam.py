"""K-SAM, and the choice of the examples with the largest losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_sam
from optax_sam import selections
from tests.conformance.reference import Recording
from tests.methods import checks
from tests.methods.examples import SIZES, mean_of_units, ranked, scores_of
from tests.oracles import k_sam
from tests.oracles.problems import NETWORK
from tests.oracles.step import count

test_follows_the_rule = checks.follows(k_sam.CASES)
test_is_sam = checks.is_sam(optax_sam.k_sam, {'ascent': 1.0, 'descent': 1.0})


@pytest.mark.usefixtures('float64')
def test_without_radius_is_ordered_sgd():
  given = {'rho': 0.0, 'ascent': 4, 'descent': 8}
  right = optax.chain(optax_sam.ordered_sgd(k=8), NETWORK.base())
  checks.equal(optax_sam.k_sam, given, right)


@pytest.mark.usefixtures('float64')
def test_takes_both_sets_of_one_recorded_ranking():
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


@settings(max_examples=100, deadline=None)
@given(
  st.one_of(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True)),
  st.integers(1, 10**6),
)
def test_sizes_are_counts_or_rounded_shares(size, batch_size):
  found = selections.num_examples(size, batch_size)
  assert isinstance(found, int)
  assert found == count(size, batch_size)
  assert 1 <= found <= batch_size
  if not isinstance(size, int):
    assert found == selections.num_examples(np.float64(size), batch_size)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 5, 12]))
def test_largest_ranks_like_a_stable_sort(data, count):
  scores = data.draw(scores_of(count))
  for size in {1, count // 2 + 1, count}:
    found = selections.largest(jnp.asarray(scores), size)
    np.testing.assert_array_equal(found, ranked(scores, size))


def linear_losses(w, batch):
  """Any values; the gradient of example i is the i-th unit vector."""
  return batch['loss'] + batch['row'] @ w


@functools.cache
def update_of(batch_size, **sizes):
  tx = optax_sam.k_sam(**sizes)
  w = jnp.zeros(batch_size)

  def update(losses):
    batch = {'loss': losses, 'row': jnp.eye(batch_size)}
    given = {'per_example_value_fn': linear_losses, 'batch': batch}
    return tx.update(w, tx.init(w), w, **given)

  return jax.jit(update)


@pytest.mark.parametrize(('batch_size', 'ascent', 'descent'), SIZES)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_gradients_are_means_over_exactly_the_top(
  batch_size, ascent, descent, data
):
  losses = data.draw(scores_of(batch_size))
  rows = ranked(losses, count(descent, batch_size))
  update = update_of(batch_size, ascent=ascent, descent=descent)
  direction, state = update(losses)
  expected = mean_of_units(rows, batch_size)
  np.testing.assert_allclose(direction, expected, rtol=1e-6)
  wanted = count(ascent, batch_size) ** -0.5  # norm of a mean of unit vectors
  found = optax_sam.metrics(state)['ascent_norm']
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def squared_errors(w, batch):
  return 0.5 * jnp.square(batch['x'] @ w - batch['y']) * batch['weight']


@functools.cache
def direction_of(**sizes):
  tx = optax_sam.k_sam(0.1, **sizes)

  @jax.jit
  def direction(w, x, y, weight):
    given = {
      'per_example_value_fn': squared_errors,
      'batch': {'x': x, 'y': y, 'weight': weight},
    }
    return tx.update(w, tx.init(w), w, **given)[0]

  return direction


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_padding_with_a_loss_of_zero_is_chosen_last(seed):
  """Three rows fill up a batch of four: they are as if not there."""
  generator = np.random.default_rng(seed)
  x, y, w = (generator.normal(size=s) for s in ((7, 3), (7,), (3,)))
  is_example = generator.permutation(np.arange(7) < 4)
  given = [jnp.asarray(v, jnp.float32) for v in (w, x, y, is_example)]
  alone = [given[0], *(v[is_example] for v in given[1:])]
  direction = direction_of(ascent=2, descent=4)
  np.testing.assert_allclose(
    direction(*given), direction(*alone), rtol=1e-5, atol=1e-6
  )
  # Beyond the examples, padding adds rows to a mean and nothing to its sum.
  more, enough = (direction_of(ascent=k, descent=k) for k in (6, 4))
  np.testing.assert_allclose(
    more(*given), enough(*alone) * 4 / 6, rtol=1e-5, atol=1e-6
  )


test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  optax_sam.k_sam, ascent=1, descent=2
)
test_bad_losses_are_never_chosen = checks.bad_losses_are_never_chosen(
  optax_sam.k_sam, ascent=2, descent=2
)


@pytest.mark.parametrize('shape', [(), (3,), (4, 1)])
def test_losses_must_be_one_an_example(shape):
  with pytest.raises(ValueError, match=r'losses must hold one .* shape \(4,\)'):
    checks.first_direction(
      optax_sam.k_sam(ascent=1, descent=2), losses=jnp.zeros(shape)
    )
