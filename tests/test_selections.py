"""Which examples feed which gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax_sam.objective import Objective

import optax_sam
from optax_sam import selections


def losses(params, batch):
  return jnp.square(params - batch['target'])


def objective(targets):
  batch = {'target': jnp.asarray(targets), 'index': jnp.arange(len(targets))}
  return Objective(per_example_value_fn=losses, batch=batch)


def chosen(objective):
  return np.asarray(objective.batch['index']).tolist()


@pytest.mark.parametrize(
  ('size', 'batch_size', 'expected'),
  [
    (1, 8, 1),
    (1.0, 8, 8),
    (3, 8, 3),
    (9, 8, 8),
    (0.5, 7, 4),
    (0.5, 5, 2),
    (1 / 3, 128, 43),
    (0.01, 8, 1),
  ],
)
def test_sizes(size, batch_size, expected):
  assert selections.num_examples(size, batch_size) == expected


@pytest.mark.parametrize('size', [0, -1, 0.0, 1.5, True, 'half', None])
def test_wrong_sizes_are_refused(size):
  with pytest.raises(ValueError, match='ascent must be'):
    optax_sam.k_sam(ascent=size, descent=1)


@pytest.mark.parametrize('as_numpy', [False, True])
def test_all_leaves_of_a_batch_are_gathered(as_numpy):
  """Also those of a batch that lies on the host when a step is compiled."""
  generator = np.random.default_rng(0)
  batch = {
    'image': generator.normal(size=(6, 2, 3)).astype(np.float32),
    'labels': (np.arange(6, dtype=np.int8), generator.random(6) > 0.5),
    'target': np.array([3, 1, 6, 2, 5, 4], np.float32),
    'nothing': None,
  }
  given = batch if as_numpy else jax.tree.map(jnp.asarray, batch)

  @jax.jit
  def chosen_batches(w):
    full = Objective(per_example_value_fn=losses, batch=given)
    selected = selections.top_k(2, 4).select(full, w, (), 0)
    return selected.ascent.batch, selected.descent(w).batch

  order = np.array([2, 4, 5, 0])
  for found, rows in zip(
    chosen_batches(jnp.float32(0)), (order[:2], order), strict=True
  ):
    expected = jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
      lambda leaf: leaf.dtype, batch
    )


def test_top_k_takes_nested_sets_of_one_ranking():
  full = objective([1.0, -4.0, 2.0, 3.0, 0.5])
  selected = selections.top_k(2, 3).select(full, jnp.float32(0), (), 0)
  assert chosen(selected.ascent) == [1, 3]
  assert chosen(selected.descent(jnp.float32(100))) == [1, 3, 2]


def test_examples_with_a_loss_of_nan_are_never_chosen():
  full = objective([1.0, np.nan, 2.0, np.inf])
  selected = selections.top_k(2, 2).select(full, jnp.float32(0), (), 0)
  assert chosen(selected.ascent) == [2, 0]
  tx = optax_sam.k_sam(0.1, ascent=2, descent=2)
  w = jnp.float32(0)
  direction, _ = tx.update(
    w, tx.init(w), w, per_example_value_fn=losses, batch=full.batch
  )
  assert np.isfinite(direction)


def test_random_subset_without_key_takes_the_first_rows():
  full = objective(np.arange(8.0))
  selection = selections.random_subset(0.5)
  selected = selection.select(full, jnp.float32(0), selection.init(None), 0)
  assert chosen(selected.ascent) == [0, 1, 2, 3]
  assert selected.descent(jnp.float32(0)) is full


def test_random_subset_draws_anew_without_replacement():
  full = objective(np.arange(16.0))
  selection = selections.random_subset(4, key=7)
  state = selection.init(None)
  draws = [
    tuple(chosen(selection.select(full, jnp.float32(0), state, t).ascent))
    for t in range(6)
  ]
  assert all(len(set(draw)) == 4 for draw in draws)
  assert len(set(draws)) > 1
  assert {x for draw in draws for x in draw} != {0, 1, 2, 3}


def test_batches_must_have_examples_in_front():
  with pytest.raises(ValueError, match='batch must be a pytree whose leaves'):
    _ = Objective(
      per_example_value_fn=losses,
      batch={'x': jnp.zeros((3, 2)), 'y': jnp.zeros((4,))},
    ).num_examples


def test_one_loss_an_example_is_needed():
  with pytest.raises(ValueError, match=r'shape \(3,\), got shape \(\)'):
    Objective(
      per_example_value_fn=lambda p, b: jnp.sum(b) * p, batch=jnp.zeros((3,))
    ).losses(jnp.float32(1))


def test_gradient_functions_may_bring_the_loss():
  w = jnp.array([3.0, 4.0])
  loss = lambda w: jnp.sum(w**2)
  tx = optax_sam.sam(0.5)
  plain, no_loss = tx.update(w, tx.init(w), w, grad_fn=jax.grad(loss))
  both, state = tx.update(w, tx.init(w), w, grad_fn=jax.value_and_grad(loss))
  np.testing.assert_array_equal(plain, both)
  np.testing.assert_allclose(state.info.perturbed_loss, 5.5**2, rtol=1e-6)
  assert no_loss.info.perturbed_loss == 0
  with pytest.raises(ValueError, match='grad_fn must return a gradient like'):
    tx.update(w, tx.init(w), w, grad_fn=lambda w: (w, w, w))
