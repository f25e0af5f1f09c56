"""Properties of the choice of examples, against the same rules in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_sam
from optax_sam import selections
from optax_sam.objective import Objective
from tests import compiling

SCORES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, np.nan, np.inf, -np.inf])
# Batch size, ascent and descent sizes: few, since each is compiled for.
SIZES = [
  (1, 1, 1.0),
  (1, 0.01, 5),
  (2, 0.75, 1),
  (5, 0.5, 3),
  (7, 0.5, 0.3),
  (7, 9, 0.9),
]
# The same selection for the same sizes, so that it is compiled once.
top_k = functools.cache(selections.top_k)
sharpest = functools.cache(selections.sharpest)


@settings(max_examples=100, deadline=None)
@given(
  st.one_of(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True)),
  st.integers(1, 10**6),
)
def test_sizes_are_counts_or_rounded_shares(size, batch_size):
  found = selections.num_examples(size, batch_size)
  assert isinstance(found, int)
  assert 1 <= found <= batch_size
  if isinstance(size, int):
    assert found == min(size, batch_size)
  else:
    assert found == 1 or abs(found - size * batch_size) <= 0.5
    assert found == selections.num_examples(np.float64(size), batch_size)


def oracle(scores, size):
  """Positions by score, largest first; ties by position, not finite last."""
  scores = np.asarray(scores)
  finite = np.where(np.isfinite(scores), scores, -np.inf)
  return np.argsort(-finite, kind='stable')[:size]


def number(size, batch_size):
  if isinstance(size, int):
    return min(size, batch_size)
  return max(1, round(size * batch_size))


def scores_of(batch_size):
  scores = st.lists(SCORES, min_size=batch_size, max_size=batch_size)
  return scores.map(lambda x: np.asarray(x, np.float32))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 5, 12]))
def test_largest_ranks_like_a_stable_sort(data, count):
  scores = data.draw(scores_of(count))
  for size in {1, count // 2 + 1, count}:
    found = selections.largest(jnp.asarray(scores), size)
    np.testing.assert_array_equal(found, oracle(scores, size))


def linear_losses(w, batch):
  """Any values; the gradient of example i is the i-th unit vector."""
  return batch['loss'] + batch['row'] @ w


@functools.cache
def direction_of(method, batch_size, **sizes):
  tx = {'k_sam': optax_sam.k_sam, 'ordered_sgd': optax_sam.ordered_sgd}[method](
    **sizes
  )
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
  """The k-th part of a direction of unit vectors is one chosen example."""
  losses = data.draw(scores_of(batch_size))
  k = number(descent, batch_size)
  expected = np.zeros(batch_size)
  expected[oracle(losses, k)] = 1 / k
  update = direction_of('k_sam', batch_size, ascent=ascent, descent=descent)
  direction, state = update(losses)
  np.testing.assert_allclose(direction, expected, rtol=1e-6)
  wanted = number(ascent, batch_size) ** -0.5  # norm of a mean of unit vectors
  np.testing.assert_allclose(state.info.ascent_norm, wanted, rtol=1e-6)
  direction, _ = direction_of('ordered_sgd', batch_size, k=descent)(losses)
  np.testing.assert_allclose(direction, expected, rtol=1e-6)


def two_losses(w, batch):
  """Any values before, and any others after, a perturbation."""
  return jnp.where(w > 0, batch['after'], batch['before'])


@functools.cache
def rows_of(selection, batch_size):
  """Returns the positions that feed both gradients, as one program."""

  @jax.jit
  def rows(before, after):
    batch = {
      'before': before,
      'after': after,
      'index': jnp.arange(batch_size),
    }
    full = Objective(per_example_value_fn=two_losses, batch=batch)
    selected = selection.select(full, jnp.float32(0), (), jnp.int32(0))
    descent = selected.descent(jnp.float32(1))
    return selected.ascent.batch['index'], descent.batch['index']

  return rows


@pytest.mark.parametrize(('batch_size', 'ascent', 'descent'), SIZES)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_rows_are_those_of_the_oracle(batch_size, ascent, descent, data):
  before, after = (
    data.draw(scores_of(batch_size)),
    data.draw(scores_of(batch_size)),
  )
  first, second = rows_of(top_k(ascent, descent), batch_size)(before, after)
  kept, left = number(ascent, batch_size), number(descent, batch_size)
  np.testing.assert_array_equal(first, oracle(before, kept))
  np.testing.assert_array_equal(second, oracle(before, left))
  first, second = rows_of(sharpest(descent), batch_size)(before, after)
  np.testing.assert_array_equal(first, np.arange(batch_size))
  with np.errstate(invalid='ignore'):
    np.testing.assert_array_equal(second, oracle(after - before, left))


@pytest.mark.parametrize(
  ('batch_size', 'fraction'),
  [(1, 1), (1, 0.2), (5, 0.5), (7, 3), (7, 0.9), (7, 20)],
)
def test_random_subset_is_a_set_of_the_size(batch_size, fraction):
  wanted = number(fraction, batch_size)
  full = Objective(
    per_example_value_fn=linear_losses, batch=jnp.arange(batch_size)
  )
  for key in (None, 3):
    selection = selections.random_subset(fraction, key=key)
    state = selection.init(None)

    @jax.jit
    def rows(count, selection=selection, state=state):
      selected = selection.select(full, jnp.float32(0), state, count)
      return selected.ascent.batch

    for count in range(4):
      found = np.asarray(rows(count)).tolist()
      assert len(found) == len(set(found)) == wanted
      assert set(found) <= set(range(batch_size))
      assert key is not None or found == list(range(wanted))


def squared_errors(w, batch):
  return 0.5 * jnp.square(batch['x'] @ w - batch['y']) * batch['weight']


def squared_errors_gradient(w, x, y):
  return (x @ w - y) @ x / len(x)


def parts_oracle(w, x, y, rho, size):
  """Mean over parts, weighted by their rows: direction, norm, loss."""
  direction, norms, loss = np.zeros_like(w), 0.0, 0.0
  for start in range(0, len(x), size):
    rows = slice(start, start + size)
    weight = len(x[rows]) / len(x)
    g = squared_errors_gradient(w, x[rows], y[rows])
    norm = np.linalg.norm(g)
    point = w + (rho * g / norm if norm > 0 else 0)
    direction += weight * squared_errors_gradient(point, x[rows], y[rows])
    norms += weight * norm
    loss += weight * np.mean(0.5 * np.square(x[rows] @ point - y[rows]))
  return direction, norms, loss


@functools.cache
def update_of(name, rho=0.1, **sizes):
  tx = {'m_sam': optax_sam.m_sam, 'k_sam': optax_sam.k_sam}[name](rho, **sizes)

  @jax.jit
  def update(w, x, y, weight):
    batch = {'x': x, 'y': y, 'weight': weight}
    clean = jax.grad(lambda w: jnp.mean(squared_errors(w, batch)))(w)
    given = {'per_example_value_fn': squared_errors, 'batch': batch}
    return tx.update(clean, tx.init(w), w, **given)

  return update


@pytest.mark.parametrize(
  ('batch_size', 'size'),
  [(1, 1), (1, 3), (5, 2), (5, 4), (6, 3), (7, 1), (7, 3), (7, 9)],
)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_parts_of_a_batch_are_weighted_by_their_rows(
  batch_size, size, seed, has_flat_part
):
  generator = np.random.default_rng(seed)
  x, y = (
    generator.normal(size=(batch_size, 3)),
    generator.normal(size=batch_size),
  )
  if has_flat_part:  # whose gradient is 0: nothing to perturb along
    x[-(batch_size % size or size) :] = 0
  w = generator.normal(size=3)
  found, state = update_of('m_sam', micro_batch_size=size)(
    *(jnp.asarray(v, jnp.float32) for v in (w, x, y, np.ones(batch_size)))
  )
  direction, norm, loss = parts_oracle(w, x, y, 0.1, size)
  np.testing.assert_allclose(found, direction, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.info.ascent_norm, norm, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(state.info.perturbed_loss, loss, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_padding_with_a_loss_of_zero_is_chosen_last(seed):
  """Three rows fill up a batch of four: they are as if not there."""
  generator = np.random.default_rng(seed)
  x, y, w = (generator.normal(size=s) for s in ((7, 3), (7,), (3,)))
  is_example = generator.permutation(np.arange(7) < 4)
  given = [jnp.asarray(v, jnp.float32) for v in (w, x, y, is_example)]
  alone = [given[0], *(v[is_example] for v in given[1:])]
  update = update_of('k_sam', ascent=2, descent=4)
  np.testing.assert_allclose(
    update(*given)[0], update(*alone)[0], rtol=1e-5, atol=1e-6
  )
  # Beyond the examples, padding adds rows to a mean and nothing to its sum.
  more, enough = (
    update_of('k_sam', ascent=6, descent=6),
    update_of('k_sam', ascent=4, descent=4),
  )
  np.testing.assert_allclose(
    more(*given)[0], enough(*alone)[0] * 4 / 6, rtol=1e-5, atol=1e-6
  )
  # A part of padding alone has no gradient, and its rows count.
  ordered = [given[0], *(v[np.argsort(~is_example)] for v in given[1:])]
  update = update_of('m_sam', micro_batch_size=2)
  np.testing.assert_allclose(
    update(*ordered)[0],
    update(given[0], *(v[:4] for v in ordered[1:]))[0] * 4 / 7,
    rtol=1e-5,
    atol=1e-6,
  )


def square(params, batch):
  return jnp.square(params - batch)


def first_direction(method, **given):
  batch = jnp.array([1.0, -4.0, 2.0, 3.0])
  params = jnp.float32(0)
  return method.update(
    jax.grad(lambda p: jnp.mean(square(p, batch)))(params),
    method.init(params),
    params,
    per_example_value_fn=square,
    batch=batch,
    **given,
  )[0]


METHODS = {
  'k_sam': optax_sam.k_sam(rho=0.5, ascent=1, descent=2),
  'ordered_sgd': optax_sam.ordered_sgd(k=2),
  'esam': optax_sam.esam(rho=0.5, gamma=1, beta=1.0, key=0),
}


@pytest.mark.parametrize('name', METHODS)
def test_losses_of_the_clean_pass_change_nothing(name):
  losses = np.array([1.0, 16.0, 4.0, 9.0], np.float32)
  expected = first_direction(METHODS[name])
  assert first_direction(METHODS[name], losses=losses) == expected
  # It is these that rank: others choose other examples.
  other = first_direction(METHODS[name], losses=np.roll(losses, 1))
  assert other != expected


@pytest.mark.parametrize('shape', [(), (3,), (4, 1)])
def test_losses_must_be_one_an_example(shape):
  with pytest.raises(ValueError, match=r'losses must hold one .* shape \(4,\)'):
    first_direction(METHODS['k_sam'], losses=jnp.zeros(shape))


def test_losses_of_the_clean_pass_save_a_forward_pass():
  """XLA doesn't see that two forward passes agree if one has a gradient."""
  width, batch_size = 64, 32
  method = METHODS['esam']
  batch = jnp.ones((batch_size, width))
  params = jnp.ones((width, width))

  def losses_of(params, batch):
    hidden = batch @ params
    hidden /= jnp.sqrt(jnp.var(hidden, axis=-1, keepdims=True) + 1)
    return jnp.sum(jnp.tanh(hidden @ params), axis=-1)

  def flops(is_given):
    def step(params, batch):
      def mean(params):
        losses = losses_of(params, batch)
        return jnp.mean(losses), losses

      grads, losses = jax.grad(mean, has_aux=True)(params)
      given = {'losses': losses} if is_given else {}
      return method.update(
        grads,
        method.init(params),
        params,
        per_example_value_fn=losses_of,
        batch=batch,
        **given,
      )[0]

    lowered = jax.jit(step).lower(params, batch)
    compiled = lowered.compile(**compiling.READ_AS_USERS)
    return compiled.cost_analysis()['flops']

  forward = 2 * 2 * batch_size * width**2
  saved = flops(is_given=False) - flops(is_given=True)
  assert 0.4 * forward < saved < 1.2 * forward
