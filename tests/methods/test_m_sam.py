"""m-SAM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_sam
from tests.methods import checks
from tests.oracles import m_sam, sam, step
from tests.oracles.problems import NETWORK

test_follows_the_rule = checks.follows(m_sam.CASES)
test_is_sam = checks.is_sam(optax_sam.m_sam, {'micro_batch_size': 64})


@pytest.mark.parametrize('devices', [2, 8])
def test_sam_on_devices_is_the_rule_of_their_examples(devices):
  """As many examples are perturbed together, wherever they lie."""
  rule = functools.partial(m_sam.m_sam, micro_batch_size=64 // devices)
  np.testing.assert_allclose(
    step.train(sam.sam, NETWORK, devices=devices).path,
    step.train(rule, NETWORK).path,
    rtol=0,
    atol=1e-12,
  )


def losses(w, batch):
  return 0.5 * jnp.square(batch['x'] @ w - batch['y']) * batch['weight']


def gradient(w, x, y):
  return (x @ w - y) @ x / len(x)


def by_parts(w, x, y, rho, size):
  """Mean over parts, weighted by their rows: direction, norm, loss."""
  direction, norms, loss = np.zeros_like(w), 0.0, 0.0
  for start in range(0, len(x), size):
    rows = slice(start, start + size)
    weight = len(x[rows]) / len(x)
    g = gradient(w, x[rows], y[rows])
    norm = np.linalg.norm(g)
    point = w + (rho * g / norm if norm > 0 else 0)
    direction += weight * gradient(point, x[rows], y[rows])
    norms += weight * norm
    loss += weight * np.mean(0.5 * np.square(x[rows] @ point - y[rows]))
  return direction, norms, loss


@functools.cache
def update_of(size):
  tx = optax_sam.m_sam(0.1, micro_batch_size=size)

  @jax.jit
  def update(w, x, y, weight):
    batch = {'x': x, 'y': y, 'weight': weight}
    clean = jax.grad(lambda w: jnp.mean(losses(w, batch)))(w)
    given = {'per_example_value_fn': losses, 'batch': batch}
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
  x = generator.normal(size=(batch_size, 3))
  y, w = generator.normal(size=batch_size), generator.normal(size=3)
  if has_flat_part:  # whose gradient is 0: nothing to perturb along
    x[-(batch_size % size or size) :] = 0
  direction, state = update_of(size)(
    *(jnp.asarray(v, jnp.float32) for v in (w, x, y, np.ones(batch_size)))
  )
  found, metrics = by_parts(w, x, y, 0.1, size), optax_sam.metrics(state)
  np.testing.assert_allclose(direction, found[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    metrics['ascent_norm'], found[1], rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(metrics['perturbed_loss'], found[2], rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_part_of_padding_alone_has_no_gradient_and_counts(seed):
  generator = np.random.default_rng(seed)
  w, x, y = (generator.normal(size=s) for s in ((3,), (7, 3), (7,)))
  given = [jnp.asarray(v, jnp.float32) for v in (w, x, y, np.arange(7) < 4)]
  update = update_of(2)
  alone, _ = update(given[0], *(v[:4] for v in given[1:]))
  np.testing.assert_allclose(
    update(*given)[0], alone * 4 / 7, rtol=1e-5, atol=1e-6
  )
