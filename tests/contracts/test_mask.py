"""Masks: leaves that are perturbed and included in the norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

_ONLY_NORM = {'dense': False, 'norm': True}
every_masked_kind = table.every_kind(lambda row: 'mask' in row.parameters)


def _points(tx, steps=2):
  """Returns the points at which the loss is evaluated, and the last step."""
  params, batch, points = training.params(), training.batch(), []

  def losses(p, b):
    jax.debug.callback(points.append, p)
    return training.losses(p, b)

  @jax.jit
  def update(state):
    return tx.update(
      training.gradient(params, batch),
      state,
      params,
      per_example_value_fn=losses,
      batch=batch,
    )

  state = tx.init(params)
  # Some methods don't perturb in the first step.
  for _ in range(steps):
    updates, state = update(state)
  jax.effects_barrier()
  return points, updates, state


def _length(points):
  """Returns the largest perturbation of the normalization layer."""
  scale = training.params()['norm']['scale']
  return max(np.linalg.norm(point['norm']['scale'] - scale) for point in points)


@every_masked_kind
def test_masked_leaves_are_not_perturbed_and_not_in_the_norm(name):
  row, params = table.ROWS[name], training.params()
  always = {'probability': 1.0} if 'probability' in row.parameters else {}
  points, updates, state = _points(row.alone(0.5, mask=_ONLY_NORM, **always))
  for point in points:
    comparisons.assert_equal(point['dense'], params['dense'])
  # Relative to scales near 1, with a gradient of similar size.
  assert 0 < _length(points) < 1.1
  if row.method.needs == 'value_fn':
    gradient = training.gradient(params, training.batch())['norm']['scale']
    norm = optax_sam.metrics(state)['ascent_norm']
    if row.place == 'chain':
      np.testing.assert_allclose(norm, jnp.linalg.norm(gradient), rtol=1e-6)
  # All leaves are updated, also masked ones.
  assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves(updates))


@every_masked_kind
def test_all_true_is_no_mask(name):
  tx, params = table.ROWS[name].alone(mask=True), training.params()

  @jax.jit
  def update(params, state, batch):
    grads = jax.grad(training.loss)(params, batch)
    return tx.update(grads, state, params, **training.functions(batch))

  given = params, tx.init(params), training.batch()
  comparisons.assert_equal(update(*given), training.direction(name)(*given))


@every_masked_kind
def test_all_false_is_the_base_optimizer(name):
  row, batch = table.ROWS[name], training.batch()
  tx = row.whole(0.5, mask=False, **table.NEUTRAL.get(name, {}))
  base = optax.with_extra_args_support(table.base())

  @jax.jit
  def both(params):
    grads = jax.grad(training.loss)(params, batch)
    given = grads, tx.init(params), params
    ours, _ = tx.update(*given, **training.functions(batch))
    return ours, base.update(grads, base.init(params), params)[0]

  is_same = (
    comparisons.assert_close
    if name in table.ROUNDS
    else comparisons.assert_equal
  )
  is_same(*both(training.params()))


@every_masked_kind
def test_wrong_masks_raise(name):
  row, params = table.ROWS[name], training.params()
  for mask, message in (
    ({'dense': True}, r'mask must be a prefix of the param'),
    ({'dense': 1, 'norm': True}, r'mask must hold Python bools.* got 1'),
  ):
    tx = row.alone(mask=mask)
    given = training.functions(training.batch())
    with pytest.raises(ValueError, match=message):
      tx.update(params, tx.init(params), params, **given)


@table.every_kind()
def test_integers_and_none_among_the_parameters_are_ignored(name):
  row = table.ROWS[name]
  tx = row.alone(base=lambda: optax.sgd(0.1))
  # jax.grad(allow_int=True) returns float0 for an integer, which base
  # optimizers don't support.
  zero = np.zeros((), jax.dtypes.float0)
  zero = jnp.int32(0) if row.place == 'wraps' else zero
  bare = lambda p: {'dense': p['dense'], 'norm': p['norm']}
  losses = lambda p, b: training.losses(bare(p), b) * jnp.float32(1)
  given = training.functions(training.batch(), losses)
  grads = training.gradient(training.params(), training.batch())
  params = {**training.params(), 'steps': jnp.int32(3), 'nothing': None}

  @jax.jit
  def update(grads, state, params):
    if 'steps' not in params:
      return tx.update(grads, state, params, **given)
    whole = {**grads, 'steps': zero, 'nothing': None}
    with jax.numpy_dtype_promotion('standard'):  # of the base optimizer
      updates, state = tx.update(whole, state, params, **given)
    if row.place != 'wraps':
      assert updates['steps'] is zero
    return bare(updates), state

  found, state = update(grads, tx.init(params), params)
  clean = bare(params)
  expected, expected_state = update(grads, tx.init(clean), clean)
  comparisons.assert_close(found, expected)
  assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(expected_state))
