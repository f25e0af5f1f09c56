"""The examples of each gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam


def batch_of(targets):
  return {
    'target': jnp.asarray(targets, jnp.float32),
    'index': jnp.arange(len(targets)),
  }


def feeds(tx, batch, state=None, w=0.0):
  """Returns the selected sub-batches of a step, and its state.

  The order of the batches of the two gradients is arbitrary.
  """
  seen = []

  def losses(w, batch):
    jax.debug.callback(lambda b: seen.append(jax.tree.map(np.array, b)), batch)
    return jnp.square(w - jnp.asarray(batch['target']))

  w = jnp.float32(w)
  state = tx.init(w) if state is None else state
  _, state = tx.update(w, state, w, per_example_value_fn=losses, batch=batch)
  jax.effects_barrier()
  whole = len(batch['target'])
  return [part for part in seen if len(part['target']) < whole], state


def chosen(*given, **settings):
  """Returns the distinct sets of rows, the smallest first."""
  parts, _ = feeds(*given, **settings)
  return sorted({tuple(part['index'].tolist()) for part in parts}, key=len)


@pytest.mark.parametrize('as_numpy', [False, True])
def test_all_leaves_of_a_batch_are_gathered(as_numpy):
  """A compiled step also gathers leaves that are NumPy arrays."""
  generator = np.random.default_rng(0)
  batch = {
    'image': generator.normal(size=(6, 2, 3)).astype(np.float32),
    'labels': (np.arange(6, dtype=np.int8), generator.random(6) > 0.5),
    'target': np.array([3, 1, 6, 2, 5, 4], np.float32),
    'nothing': None,
  }
  given = batch if as_numpy else jax.tree.map(jnp.asarray, batch)
  parts, _ = feeds(optax_sam.k_sam(ascent=2, descent=4), given)
  order = np.array([2, 4, 5, 0])
  assert {len(part['target']) for part in parts} == {2, 4}
  for part in parts:
    rows = order[: len(part['target'])]
    jax.tree.map(
      lambda found, leaf, rows=rows: np.testing.assert_array_equal(
        found, leaf[rows], strict=True
      ),
      part,
      batch,
    )


def test_top_k_selects_nested_sets_of_one_ranking():
  batch = batch_of([1.0, -4.0, 2.0, 3.0, 0.5])
  # With this radius the ranking at the perturbed parameters differs.
  tx = optax_sam.k_sam(100.0, ascent=2, descent=3)
  assert chosen(tx, batch) == [(1, 3), (1, 3, 2)]


def test_examples_with_a_loss_that_is_not_finite_are_never_chosen():
  batch = batch_of([1.0, np.nan, 2.0, np.inf])
  tx = optax_sam.k_sam(0.1, ascent=2, descent=2)
  assert chosen(tx, batch) == [(2, 0)]


def test_random_subset_without_key_takes_the_first_rows():
  tx = optax_sam.subset_sam(fraction=0.5)
  assert chosen(tx, batch_of(np.arange(8.0))) == [(0, 1, 2, 3)]


def test_random_subset_draws_a_new_subset_without_replacement():
  tx, batch = optax_sam.subset_sam(fraction=4, key=7), batch_of(np.arange(16.0))
  state, draws = None, []
  for _ in range(6):
    (part, *_), state = feeds(tx, batch, state)
    draws.append(tuple(part['index'].tolist()))
  assert all(len(set(draw)) == 4 for draw in draws)
  assert len(set(draws)) > 1
  assert {x for draw in draws for x in draw} != {0, 1, 2, 3}
