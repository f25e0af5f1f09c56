"""Non-finite gradients reach the base optimizer and do not change state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

# Value and gradient are finite at 0.9, and NaN beyond 1.
EDGE = jnp.array([0.9])


def edge_loss(v):
  return -jnp.sum(jnp.sqrt(1 - v))


def guard(row, method, base=table.base):
  """Places `apply_if_finite` as documented."""
  careful = optax.apply_if_finite(
    base() if row.place == 'chain' else optax.identity(), 5
  )
  front = (base(), method) if row.place == 'after' else (method,)
  return optax.chain(*front, careful)


def kept(row, opt_state):
  """Returns all states that must not change."""
  own = opt_state[1] if row.place == 'after' else opt_state[0]
  return own, opt_state[-1].inner_state


@functools.cache
def trained(name, jit=True):
  """Returns a guarded optimizer, its step with bad losses, and a warm state."""
  row = table.ROWS[name]
  tx = guard(row, row.alone(base=table.base))

  def step(params, opt_state, batch, factor, clean):
    """Spoils the perturbed gradients, or the unperturbed ones."""
    start = jax.lax.stop_gradient(params)

    def losses(p, batch):
      same = jax.tree.map(lambda x, y: jnp.all(x == y), p, start)
      is_there = jnp.all(jnp.stack(jax.tree.leaves(same)))
      return training.losses(p, batch) * jnp.where(is_there, 1.0, factor)

    given = training.functions(batch, losses)
    grads = jax.grad(given['value_fn'])(params)
    grads['norm']['scale'] = grads['norm']['scale'].at[0].multiply(clean)
    updates, opt_state = tx.update(grads, opt_state, params, **given)
    return optax.apply_updates(params, updates), opt_state

  step = jax.jit(step) if jit else step
  state = training.start(tx)
  with jax.numpy_dtype_promotion('standard'):
    for t in range(4):
      state = step(*state, training.batch(t), 1.0, 1.0)
  return row, step, state


def take(name, factor, clean, jit=True):
  row, step, (params, before) = trained(name, jit)
  with jax.numpy_dtype_promotion('standard'):
    found = step(params, before, training.batch(5), factor, clean)
  return row, (params, before), found


def assert_rejected(row, before, after):
  comparisons.assert_equal(after[0], before[0])
  comparisons.assert_equal(kept(row, after[1]), kept(row, before[1]))
  assert int(after[1][-1].total_notfinite) == 1


def notfinite(found):
  return int(found[1][-1].total_notfinite)


@table.every_row()
@pytest.mark.parametrize('bad', [jnp.inf, jnp.nan])
def test_a_bad_unperturbed_gradient_changes_nothing(name, bad):
  row, before, found = take(name, 1.0, bad)
  if notfinite(found):
    assert_rejected(row, before, found)
  else:  # the method does not use it
    comparisons.assert_equal(found, take(name, 1.0, 1.0)[2])
    unused = row.name in ('momentum_sam', 'sparse_sam_layers', 'tsam')
    assert row.method.needs == 'examples' or unused


@table.every_row(lambda row: row.radius)
@pytest.mark.parametrize('bad', [jnp.inf, jnp.nan])
def test_a_bad_perturbed_gradient_changes_nothing(name, bad):
  row, before, found = take(name, bad, 1.0)
  if notfinite(found):
    assert_rejected(row, before, found)
  else:  # the policy has skipped it
    assert not optax_sam.metrics(found[1])['ascended']
    assert row.method.group == 'some steps' or name == 'everything'


@table.every_kind(lambda row: row.place == 'chain')
def test_a_bad_gradient_outside_of_jit_changes_nothing(name):
  for factor, clean in ((jnp.nan, 1.0), (1.0, jnp.inf)):
    row, before, found = take(name, factor, clean, jit=False)
    if notfinite(found):
      assert_rejected(row, before, found)


@pytest.mark.parametrize('name', ['sam', 'friendly_sam', 'ae_sam', 'look_sam'])
@pytest.mark.parametrize('bad_is_clean', [False, True])
def test_multi_steps_skip_bad_gradients(name, bad_is_clean):
  rule = optax.skip_not_finite
  steps = optax.MultiSteps(optax.adam(0.1), 1, should_skip_update_fn=rule)
  method = table.ROWS[name].alone(0.5)
  tx = optax.chain(method, steps.gradient_transformation())
  grads, before = jax.grad(edge_loss)(EDGE), tx.init(EDGE)
  with jax.numpy_dtype_promotion('standard'):
    if bad_is_clean:
      given = {'grad_fn': lambda _: grads}
      updates, after = tx.update(grads * jnp.inf, before, EDGE, **given)
    else:
      updates, after = tx.update(grads, before, EDGE, value_fn=edge_loss)
  assert not updates.any()
  own = lambda state: (state[0], state[1][:4])
  comparisons.assert_equal(own(after), own(before))


def test_all_methods_forward_non_finite_gradients():
  """They do so with a mask, and if the perturbed gradient is finite."""
  grads = {'a': jnp.array([jnp.inf, 1.0]), 'b': jnp.ones(2)}
  params = jax.tree.map(jnp.ones_like, grads)
  for name in ('sam', 'gsam', 'asam', 'look_sam', 'gradient_norm_penalty'):
    for mask in (None, {'a': True, 'b': False}):
      method = table.ROWS[name].alone(mask=mask)
      found = method.update(
        grads, method.init(params), params, grad_fn=lambda p: p
      )
      assert not comparisons.all_finite(found[0])
      comparisons.assert_equal(found[1], method.init(params))
      assert not found[1].info.ascended
  skips = table.ROWS['ae_sam'].alone()
  found, _ = skips.update(
    grads, skips.init(params), params, grad_fn=lambda p: p
  )
  comparisons.assert_equal(found, grads)


def test_large_gradients_are_not_rejected():
  """The squares overflow. A gradient of zero is not rejected either."""
  params = jnp.array([1.0, 2.0])
  tx = optax_sam.friendly_sam(0.5)
  for grads in (jnp.array([3e30, 4e30]), jnp.zeros(2)):
    update, state = jax.jit(
      lambda g: tx.update(g, tx.init(params), params, grad_fn=lambda _: g)
    )(grads)
    comparisons.assert_equal(update, grads)
    assert state.info.ascended
    assert state.info.second_gradients == 1
    ema = state.perturbation[0].ema
    np.testing.assert_allclose(ema, 0.1 * grads, rtol=1e-6)


def test_a_bad_ascent_gradient_of_selected_examples_changes_nothing():
  """K-SAM's ascent gradient is bad, its perturbed gradient is finite."""
  losses = lambda w, batch: batch + jnp.where(batch > 2, w, jnp.sqrt(w))[0]
  batch, w = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(1)
  tx = optax_sam.k_sam(0.1, ascent=2, descent=1)
  u, state = tx.update(
    w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  )
  assert not comparisons.all_finite(u)
  comparisons.assert_equal(state, tx.init(w))


@pytest.mark.parametrize('name', ['lookbehind', 'wsam_decoupled', 'sampa'])
def test_bad_gradients_before_a_base_optimizer_that_hides_them_change_nothing(
  name,
):
  """Sign or clipping turns an infinite gradient into a finite update."""
  row = table.ROWS[name]
  sign = lambda: optax.chain(optax.scale_by_sign(), optax.trace(0.9))
  tx = row.alone(base=sign)
  params = before = training.params()
  losses = lambda p, batch: jnp.inf * training.losses(p, batch)
  given = training.functions(training.batch(), losses)
  grads = training.gradient(params, training.batch())
  state = tx.init(params)
  updates, after = jax.jit(lambda: tx.update(grads, state, params, **given))()
  assert not comparisons.all_finite(updates)
  comparisons.assert_equal(after, state)
  comparisons.assert_equal(params, before)


def test_frob_sam_forwards_a_sample_that_is_not_finite():
  """The loss is finite, its gradient is not; overflow is excluded."""
  tx = optax_sam.frob_sam(0.1, key=0)
  w = jnp.ones(3)
  for bad, is_bad in ((jnp.nan, True), (jnp.inf, True), (1e38, False)):
    grad_fn = lambda p, bad=bad: (jnp.sum(p), jnp.full(3, bad))
    u, state = tx.update(w, tx.init(w), w, grad_fn=grad_fn)
    assert comparisons.all_finite(u) is not is_bad
    assert state.step_count == (0 if is_bad else 1)


def test_apply_if_finite_after_the_method_detects_a_bad_gradient():
  """Around the whole optimizer it would detect nothing."""
  grads = jax.grad(edge_loss)(EDGE)
  tx = optax.chain(
    optax_sam.sam(0.05), optax.apply_if_finite(optax.sgd(0.1), 5)
  )
  u, _ = tx.update(grads, tx.init(EDGE), EDGE, value_fn=edge_loss)
  np.testing.assert_allclose(u, -0.1 * 0.5 / np.sqrt(0.05), rtol=1e-5)
  around = optax.apply_if_finite(
    optax.chain(optax_sam.sam(0.5), optax.sgd(0.1)), 5
  )
  u, state = around.update(grads, around.init(EDGE), EDGE, value_fn=edge_loss)
  assert not comparisons.all_finite(u)
  assert state.total_notfinite == 0


@pytest.mark.parametrize('sync', [False, True])
@pytest.mark.parametrize('name', ['sam', 'friendly_sam', 'ae_sam', 'look_sam'])
def test_a_bad_device_is_detected_by_all_devices(name, sync):
  method = table.ROWS[name].alone(axis_name='data', sync_ascent=sync)
  tx = optax.chain(method, optax.apply_if_finite(optax.sgd(0.1, 0.9), 5))
  w = jnp.array([3.0, 4.0])

  @functools.partial(jax.pmap, axis_name='data', in_axes=(None, None, 0, 0))
  def step(params, state, clean, second):
    grad_fn = lambda p: second * p
    return tx.update(clean * params, state, params, grad_fn=grad_fn)

  good = jnp.ones(4)
  state = jax.tree.map(lambda x: x[0], step(w, tx.init(w), good, good)[1])
  bad = good.at[2].set(jnp.inf)
  # LookSAM reuses its direction here and takes no perturbed gradient.
  for given in ((bad, good), (good, bad))[: 1 if name == 'look_sam' else 2]:
    updates, after = step(w, state, *given)
    assert not updates.any()
    for x, y in zip(
      jax.tree.leaves((after[0], after[1].inner_state)),
      jax.tree.leaves((state[0], state[1].inner_state)),
      strict=True,
    ):
      np.testing.assert_array_equal(x, np.broadcast_to(y, x.shape))
