"""Two plain calls of `update` equal one step of the closure form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

REFUSED = (
  *('cr_sam', 'eigen_sam', 'frob_sam', 'lpf_sgd', 'sam in steps', 'tsam'),
  *('sparse_sam_layers', 'sparse_sam_layers whole batch'),
)


def is_driven(row):
  takes_functions = row.method.needs in ('value_fn', 'loss')
  return table.in_chain(row) and takes_functions and row.name not in REFUSED


def alternate(tx, number):
  """Takes steps of one or two calls; yields the parameters after each."""
  update = jax.jit(tx.update)
  params, opt_state = training.start(tx)
  before = params
  for t in range(number):
    while True:
      grads = training.gradient(params, training.batch(t))
      updates, opt_state = update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      w = optax_sam.unperturbed_params(params, opt_state)
      if not optax.tree_utils.tree_get(opt_state, 'is_perturbed'):
        break
      comparisons.assert_equal(w, before)
    before = w
    comparisons.assert_equal(params, w)
    yield params, opt_state


@table.every_row(is_driven)
def test_equals_the_closure_form(name):
  row = table.ROWS[name]
  closure = jax.jit(training.training_step(row.whole()))
  theirs = training.start(row.whole())
  tx = optax_sam.alternating(row.alone(), table.base())
  calls = alternate(tx, 6)
  for t, (params, state) in enumerate(calls):  # noqa: B007
    theirs = closure(*theirs, training.batch(t))
    comparisons.assert_close(params, theirs[0], 3e-6)
  own = lambda state: state._replace(info=())
  found, wanted = (
    comparisons.without_keys(own(x)) for x in (state.method, theirs[1][0])
  )
  comparisons.assert_close(found, wanted, 1e-4)
  comparisons.assert_close(state.base, theirs[1][1], 3e-6)
  taken = [x.info.second_gradients for x in (state.method, theirs[1][0])]
  assert taken[0] == taken[1]


def test_equals_the_transparent_mode_of_optax():
  rho, base = 0.1, optax.sgd(0.1, momentum=0.9)
  ours = optax_sam.alternating(optax_sam.sam(rho), base)
  adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
  theirs = optax.contrib.sam(base, adversary, sync_period=2, opaque_mode=False)
  found = []
  for tx in (ours, theirs):
    params, state = training.start(tx)
    with jax.numpy_dtype_promotion('standard'):
      for t in range(8):
        grads = training.gradient(params, training.batch(t // 2))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
  comparisons.assert_close(found[:8], found[8:], 1e-6)


@table.every_row(
  lambda row: (
    row.place in ('wraps', 'replaces', 'after')
    or (table.in_chain(row) and not is_driven(row))
  )
)
def test_other_methods_raise(name):
  tx = optax_sam.alternating(table.ROWS[name].alone(), optax.sgd(0.1))
  with pytest.raises(ValueError, match=r'^method must ') as error:
    tx.init(training.params())
  words = {
    'sam in steps': 'takes 2, such as sam with ascent_steps=2',
    'cr_sam': 'takes 2, such as .* cr_sam, ',
    'frob_sam': 'frob_sam needs the loss',
    'm_sam': 'needs per-example losses',
    'lookbehind': 'got one with a LookbehindState',
    'b_sam': 'got one with a BSamState',
  }
  assert error.match(words.get(name, 'method'))


def test_invalid_use_raises():
  base = optax.sgd(0.1)
  with pytest.raises(ValueError, match=r'method must be one such as'):
    optax_sam.alternating(0.05, base)
  with pytest.raises(ValueError, match=r'^base must be an optimizer'):
    optax_sam.alternating(optax_sam.sam(), 0.1)
  chain = optax.chain(optax_sam.sam(), optax.clip(1.0))
  for method in (base, chain):
    with pytest.raises(ValueError, match=r'other transformations into base'):
      optax_sam.alternating(method, base).init(jnp.ones(2))
  tx = optax_sam.alternating(optax_sam.sam(), base)
  with pytest.raises(ValueError, match=r'params must be given'):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
  with pytest.raises(ValueError, match=r'zeros where a leaf has none'):
    tx.update(None, tx.init(jnp.ones(2)), jnp.ones(2))
  with pytest.raises(ValueError, match=r'must hold one AlternatingState'):
    optax_sam.unperturbed_params(jnp.ones(2), base.init(jnp.ones(2)))


def quadratic(w):
  return jnp.array([1.0, 4.0]) * w


def sam_by_hand(w, rho=0.5, rate=0.1):
  g = quadratic(w)
  return w - rate * quadratic(w + rho * g / jnp.linalg.norm(g))


def test_a_scan_after_clipping_equals_sam_by_hand():
  tx = optax.chain(
    optax.clip(1e3),
    optax_sam.alternating(optax_sam.sam(0.5), optax.sgd(0.1)),
  )

  def call(carry, _):
    params, state = carry
    updates, state = tx.update(quadratic(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  w = jnp.array([1.0, -2.0])
  with jax.numpy_dtype_promotion('standard'):
    (params, _), _ = jax.lax.scan(call, (w, tx.init(w)), length=6)
  expected = sam_by_hand(sam_by_hand(sam_by_hand(w)))
  np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_integers_are_unchanged_and_buffers_can_be_donated():
  tx = optax_sam.alternating(optax_sam.sam(0.5), optax.sgd(0.1))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def call(params, state):
    grads = {'w': quadratic(params['w']), 'n': jnp.zeros((), jnp.int32)}
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  start = {'w': jnp.array([1.0, -2.0]), 'n': jnp.int32(3)}
  expected = sam_by_hand(start['w'])
  params, state = jax.tree.map(jnp.copy, (start, tx.init(start)))
  types = comparisons.types(state)
  for _ in range(2):
    with jax.numpy_dtype_promotion('standard'):
      params, state = call(params, state)
    assert comparisons.types(state) == types
  np.testing.assert_allclose(params['w'], expected, rtol=1e-6)
  assert params['n'] == 3


def test_accumulation_in_multi_steps_equals_sam_by_hand():
  """Each call gets the mean of two gradients."""
  tx = optax.MultiSteps(
    optax_sam.alternating(optax_sam.sam(0.5), optax.sgd(0.1)), 2
  )
  params = jnp.array([1.0, -2.0])
  state, expected = tx.init(params), sam_by_hand(params)
  for call in range(4):
    grads = (0.5 + call % 2) * quadratic(params)
    with jax.numpy_dtype_promotion('standard'):
      updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params, expected, rtol=1e-6)


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('bad_call', [0, 1])
def test_a_gradient_that_is_not_finite_changes_nothing(bad_call, jit):
  """The base optimizer rejects it; the step ends without an update."""
  tx = optax_sam.alternating(
    optax_sam.friendly_sam(0.5), optax.apply_if_finite(optax.sgd(0.1, 0.9), 5)
  )
  update = jax.jit(tx.update) if jit else tx.update
  params = w = jnp.array([1.0, -2.0])
  before = state = tx.init(w)
  for call in range(bad_call + 1):
    grads = quadratic(params) * (jnp.nan if call == bad_call else 1.0)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params, w, rtol=1e-6)
  assert not state.is_perturbed
  comparisons.assert_equal(state.method, before.method)
  comparisons.assert_equal(state.base.inner_state, before.base.inner_state)
  assert state.base.total_notfinite == 1


@pytest.mark.parametrize('sync', [False, True])
def test_a_method_with_axis_name_raises(sync):
  method = optax_sam.sam(0.5, axis_name='data', sync_ascent=sync)
  init = optax_sam.alternating(method, optax.sgd(0.1)).init
  w = jnp.ones(2)
  with pytest.raises(ValueError, match=r'average the gradients before tx\.up'):
    init(w)
  with pytest.raises(ValueError, match=r'average the gradients before tx\.up'):
    jax.pmap(init, axis_name='data')(jnp.ones((2, 2)))


def test_averaged_gradients_on_devices_equal_one_device():
  tx = optax_sam.alternating(optax_sam.sam(0.5, axis_name=()), optax.sgd(0.1))
  w = jnp.array([1.0, -2.0])
  scales = jnp.array([0.5, 1.5])

  @functools.partial(jax.pmap, axis_name='data', in_axes=(None, None, 0))
  def call(params, state, scale):
    grads = jax.lax.pmean(scale * quadratic(params), 'data')
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params, state = w, tx.init(w)
  for _ in range(2):
    both = call(params, state, scales)
    for leaf in jax.tree.leaves(both):
      np.testing.assert_array_equal(*leaf)
    params, state = jax.tree.map(lambda x: x[0], both)
  np.testing.assert_allclose(params, sam_by_hand(w), rtol=1e-6)
