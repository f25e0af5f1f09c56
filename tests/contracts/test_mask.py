"""Masks: which leaves are perturbed and counted in the norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

_ONLY_NORM = {'dense': False, 'norm': True}
_MASKS = {
  'prefix': _ONLY_NORM,
  'full': {'dense': {'bias': False, 'kernel': False}, 'norm': {'scale': True}},
  'callable': lambda _: _ONLY_NORM,
  'norm_layers_only': optax_sam.norm_layers_only,
  'numpy': {'dense': np.False_, 'norm': np.True_},
}


_gradient = jax.jit(jax.grad(training.loss))


def _ascending(name, mask, **changes):
  """Returns a method that takes the second gradient at the first step."""
  row = table.ROWS[name]
  return row(0.5, mask=mask, **{**row.ascending, **changes})


@table.every_row(perturbs=True)
def test_what_is_left_out_stays_and_is_not_in_the_norm(name):
  row, params, batch = table.ROWS[name], training.params(), training.batch()
  points = []

  def losses(p, b):
    jax.debug.callback(points.append, p)
    return training.losses(p, b)

  tx = _ascending(name, _ONLY_NORM)
  state = tx.init(params)
  for _ in range(1 + row.delayed):
    updates, state = tx.update(
      _gradient(params, batch),
      state,
      params,
      per_example_value_fn=losses,
      batch=batch,
    )
  jax.effects_barrier()
  assert points
  moved = [np.zeros(())]
  for point in points:
    comparisons.assert_equal(point['dense'], params['dense'])
    moved.append(
      np.linalg.norm(point['norm']['scale'] - params['norm']['scale'])
    )
  if row.has_length_rho:
    np.testing.assert_allclose(max(moved), 0.5, rtol=1e-5)
  else:
    # Relative to scales close to 1, at a gradient of about that size.
    assert 0 < max(moved) < 1
  if not row.ascends_on_parts:
    gradient = _gradient(params, batch)['norm']['scale']
    np.testing.assert_allclose(
      state.info.ascent_norm, jnp.linalg.norm(gradient), rtol=1e-6
    )
  # All leaves descend, those that are left out too.
  assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize('mask', _MASKS)
def test_ways_to_write_a_mask(mask):
  params = training.params()
  tx = optax_sam.sam(0.5, mask=_MASKS[mask])
  gradient = _gradient(params, training.batch())
  points, _ = tx.update(gradient, tx.init(params), params, grad_fn=lambda p: p)
  comparisons.assert_equal(points['dense'], params['dense'])
  scale = gradient['norm']['scale']
  np.testing.assert_allclose(
    points['norm']['scale'],
    params['norm']['scale'] + 0.5 * scale / jnp.linalg.norm(scale),
    rtol=1e-6,
  )


@table.every_row(perturbs=True)
def test_all_true_is_no_mask(name):
  params = training.params()
  plain = table.ROWS[name]()
  masked = table.ROWS[name](mask=True)
  given = training.functions(training.batch())
  grads = _gradient(params, training.batch())
  comparisons.assert_equal(
    masked.update(grads, masked.init(params), params, **given),
    plain.update(grads, plain.init(params), params, **given),
  )


@table.every_row(perturbs=True)
def test_all_false_is_the_base_optimizer(name):
  row, params, batch = table.ROWS[name], training.params(), training.batch()
  tx = _ascending(name, mask=False, **row.neutral)
  given = training.functions(batch)
  given['grad_fn'] = lambda p: _gradient(p, batch)
  grads = given['grad_fn'](params)
  updates, _ = tx.update(grads, tx.init(params), params, **given)
  is_same = comparisons.assert_close if row.rounds else comparisons.assert_equal
  is_same(updates, grads)


@table.every_row(perturbs=True)
def test_wrong_masks(name):
  row, params = table.ROWS[name], training.params()
  with pytest.raises(ValueError, match=r'mask must be a prefix of the param'):
    row(mask={'dense': True}).init(params)
  with pytest.raises(ValueError, match=r'mask must hold Python bools.* got 1'):
    row(mask={'dense': 1, 'norm': True}).init(params)


def test_norm_layers_only_without_one():
  with pytest.raises(ValueError, match=r"no normalization layer among \['den"):
    optax_sam.sam(mask=optax_sam.norm_layers_only).init({'dense': jnp.ones(2)})


@pytest.mark.parametrize(
  ('name', 'is_norm'),
  [
    ('BatchNorm_0', True),
    ('layer_norm', True),
    ('bn1', True),
    ('ln_2', True),
    ('gn', True),
    ('conv', False),
    ('lndense', False),
  ],
)
def test_names_of_normalization_layers(name, is_norm):
  params = {name: {'w': jnp.ones(2)}, 'norm': jnp.ones(2)}
  chosen = optax_sam.norm_layers_only(params)
  assert chosen == {name: {'w': is_norm}, 'norm': True}


@table.every_row()
def test_integers_and_none_among_the_parameters(name):
  steps = jnp.asarray(3, jnp.int32)
  tx = table.ROWS[name]()
  clean = training.params()
  params = {**clean, 'steps': steps, 'nothing': None}
  batch = training.batch()
  bare = lambda p: {'dense': p['dense'], 'norm': p['norm']}
  losses = lambda p, b: training.losses(bare(p), b) * jnp.float32(1)
  grads = jax.grad(training.loss)(clean, batch)
  # What jax.grad(allow_int=True) gives for an integer.
  zero = np.zeros((), jax.dtypes.float0)

  @jax.jit
  def update(grads, state, params):
    whole = {**grads, 'steps': zero, 'nothing': None}
    given = training.functions(batch, losses)
    updates, state = tx.update(whole, state, params, **given)
    assert updates['steps'] is zero
    return bare(updates), state

  updates, state = update(grads, tx.init(params), params)
  expected, expected_state = training.direction(name)(
    clean, tx.init(clean), batch
  )
  comparisons.assert_close(updates, expected)
  assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(expected_state))


def test_a_gradient_function_that_knows_all_leaves():
  params = {'weight': jnp.ones(2), 'steps': jnp.asarray(3), 'nothing': None}
  zero = np.zeros((), jax.dtypes.float0)
  grad_fn = lambda p: {'weight': p['weight'], 'steps': zero, 'nothing': None}
  tx = optax_sam.sam(2**0.5)
  updates, _ = tx.update(
    grad_fn(params), tx.init(params), params, grad_fn=grad_fn
  )
  np.testing.assert_allclose(updates['weight'], 2 * jnp.ones(2), rtol=1e-6)
  assert updates['steps'] is zero
