"""Ordered SGD."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import ordered_sgd

test_follows_the_rule = checks.follows(ordered_sgd.CASES)
test_is_base = checks.is_base(
  optax_sam.ordered_sgd, {'k': 1.0}, tolerance=1e-12
)
test_losses_of_the_clean_pass = checks.losses_of_the_clean_pass(
  optax_sam.ordered_sgd, k=2
)


@pytest.mark.usefixtures('float64')
def test_is_unbiased_for_the_weighted_sum_of_sorted_losses():
  """Over all batches of b out of n examples, compared to the closed form."""
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
