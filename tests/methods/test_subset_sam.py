"""SAM whose ascent gradient is that of a part of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import subset_sam
from tests.oracles.step import count

test_follows_the_rule = checks.follows(subset_sam.CASES)
test_is_sam = checks.is_sam(
  optax_sam.subset_sam, {'fraction': 1.0}, {'fraction': 1.0, 'key': 3}
)


@pytest.mark.parametrize('key', [None, 3])
@pytest.mark.parametrize(
  ('batch_size', 'fraction'),
  [(1, 1), (1, 0.2), (5, 0.5), (7, 3), (7, 0.9), (7, 20)],
)
def test_examples_are_a_set_of_the_size(batch_size, fraction, key):
  """Those that are ascended by have the entries of epsilon that are not 0."""
  wanted = count(fraction, batch_size)
  w, batch = jnp.zeros(batch_size), jnp.eye(batch_size)
  tx = optax_sam.subset_sam(1.0, fraction=fraction, key=key)

  def losses(w, batch):
    return batch @ w + 0.5 * jnp.sum(jnp.square(w))

  @jax.jit
  def step(state):
    return tx.update(w, state, w, per_example_value_fn=losses, batch=batch)

  state, draws = tx.init(w), set()
  for _ in range(6):
    direction, state = step(state)
    epsilon = direction - 1 / batch_size
    rows = np.flatnonzero(np.abs(epsilon) > 1e-6)
    np.testing.assert_allclose(epsilon[rows], wanted**-0.5, rtol=1e-5)
    assert len(rows) == wanted
    draws.add(tuple(rows.tolist()))
  if key is None:
    assert draws == {tuple(range(wanted))}
  elif wanted < batch_size:
    assert len(draws) > 1
