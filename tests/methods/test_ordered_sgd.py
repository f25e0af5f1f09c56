"""Ordered SGD."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_sam
from tests.methods import checks
from tests.methods.examples import SIZES, mean_of_units, ranked, scores_of
from tests.oracles import ordered_sgd
from tests.oracles.step import count

test_follows_the_rule = checks.follows(ordered_sgd.CASES)
test_is_base = checks.is_base(
  optax_sam.ordered_sgd, {'k': 1.0}, tolerance=1e-12
)
test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  optax_sam.ordered_sgd, k=2
)
test_bad_losses_are_never_chosen = checks.bad_losses_are_never_chosen(
  optax_sam.ordered_sgd, k=2
)


@functools.cache
def direction_of(batch_size, k):
  tx, w = optax_sam.ordered_sgd(k=k), jnp.zeros(batch_size)

  def losses(w, batch):
    return batch['loss'] + batch['row'] @ w

  def direction(given):
    batch = {'loss': given, 'row': jnp.eye(batch_size)}
    return tx.update(
      w, tx.init(w), w, per_example_value_fn=losses, batch=batch
    )[0]

  return jax.jit(direction)


@pytest.mark.parametrize(('batch_size', '_', 'k'), SIZES)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_gradient_is_the_mean_over_exactly_the_top(batch_size, _, k, data):
  losses = data.draw(scores_of(batch_size))
  rows = ranked(losses, count(k, batch_size))
  np.testing.assert_allclose(
    direction_of(batch_size, k)(losses),
    mean_of_units(rows, batch_size),
    rtol=1e-6,
  )


@pytest.mark.usefixtures('float64')
def test_is_unbiased_for_the_weighted_sum_of_sorted_losses():
  """By all batches of b out of n, against the weights in closed form."""
  n, b, k = 7, 4, 2
  method, w = optax_sam.ordered_sgd(k=k), jnp.float64(0.2)
  data = jnp.sin(jnp.arange(1.0, n + 1) ** 2)
  batches = data[np.array(list(itertools.combinations(range(n), b)))]
  given = {'per_example_value_fn': checks.square}
  directions = jax.vmap(
    lambda batch: method.update(w, method.init(w), w, **given, batch=batch)[0]
  )(batches)

  weights = [
    sum(
      math.comb(j - 1, i) * math.comb(n - j, b - i - 1)
      for i in range(min(k, j, b))
    )
    / math.comb(n, b)
    for j in range(1, n + 1)
  ]
  assert sum(weights) == pytest.approx(k)
  order = jnp.argsort(-checks.square(w, data))
  gradients = 2 * (w - data[order])
  expected = np.dot(weights, gradients) / k
  np.testing.assert_allclose(np.mean(directions), expected, rtol=1e-12)
  assert abs(expected - np.mean(gradients)) > 0.1


@pytest.mark.parametrize('interact', [False, True])
def test_gathers_before_the_forward_pass(interact):
  """The program ranks in a full one: the same unless examples interact."""

  def losses(w, batch):
    shifted = batch - float(interact) * jnp.mean(batch)
    return jnp.square(w - shifted)

  w, batch = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0, -6.0])
  within = jax.grad(lambda w: jnp.mean(jax.lax.top_k(losses(w, batch), 2)[0]))
  found = checks.perturbed(
    optax_sam.ordered_sgd(k=2), w, w, per_example_value_fn=losses, batch=batch
  )
  assert (float(found) == float(within(w))) is not interact
