"""Contracts of what holds a base optimizer, or stands instead of one."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

_LIKE = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), training.batch()
)
_DECAY = {'learning_rate': 0.1}
# Name, arguments, those that shape the program.
ROWS = {
  'wsam_decoupled': (_DECAY, ()),
  'lookbehind': ({}, ('steps',)),
  'sampa': ({'batch_like': _LIKE}, ('batch_like',)),
  'b_sam': ({'micro_batches': 3, 'num_data': 40, 'key': 1}, ('micro_batches',)),
  'entropy_sgd': ({'inner_steps': 3, 'noise': 0.01, 'key': 1}, ()),
}
AROUND = ('wsam_decoupled', 'lookbehind', 'sampa')
every_name = pytest.mark.parametrize('name', ROWS)


# Its base optimizers promote where dtypes differ.
_OF_OPTAX = jax.numpy_dtype_promotion('standard')


def build(name, **changes):
  given = (training.base(),) if name in AROUND else ()
  return getattr(optax_sam, name)(*given, **{**ROWS[name][0], **changes})


def injected(name):
  """Returns the same, with its numbers in the state."""
  arguments, static = ROWS[name]
  if name in AROUND:
    arguments, static = (
      {'base': training.base(), **arguments},
      ('base', *static),
    )
  return optax.inject_hyperparams(getattr(optax_sam, name), static_args=static)(
    **arguments
  )


def stepping(name, **changes):
  tx = build(name, **changes)
  return tx, training.jit(training.training_step(tx))


def _own(state, name):
  """Returns what is not the state of the base."""
  return state._replace(base=()) if name in AROUND else state


def types(tree):
  return jax.tree.map(
    lambda x: (x.dtype, x.shape, getattr(x, 'weak_type', False)), tree
  )


def test_no_public_method_is_left_out():
  found = set()
  for name in optax_sam.__all__:
    function = getattr(optax_sam, name)
    if inspect.isfunction(function):
      first = next(iter(inspect.signature(function).parameters), None)
      found |= {name} if first in table.NO_ELEMENT else set()
  assert found - {'rho_like_learning_rate'} == set(ROWS)


@every_name
@pytest.mark.parametrize(
  ('params_dtype', 'grads_dtype'),
  [
    ('float32', 'float32'),
    ('bfloat16', 'bfloat16'),
    ('bfloat16', 'float32'),
    ('float64', 'float64'),
  ],
)
def test_types_are_stable(name, params_dtype, grads_dtype):
  with (
    jax.enable_x64('float64' in (params_dtype, grads_dtype)),
    _OF_OPTAX,
  ):
    tx, params = build(name), training.params(params_dtype)
    grads, state = training.params(grads_dtype), tx.init(params)
    given = training.functions(training.batch())
    updates, after = jax.eval_shape(
      lambda g, s, p: tx.update(g, s, p, **given), grads, state, params
    )
    assert types(_own(after, name)) == types(_own(state, name))
    if name not in AROUND:  # theirs are as the base has them
      assert types(updates) == types(grads)
    kept = {leaf.dtype for leaf in jax.tree.leaves(_own(state, name))}
    assert not {jnp.dtype('bfloat16'), jnp.dtype('float16')} & kept


@every_name
def test_one_compilation_and_donation(name):
  tx = build(name)
  traces = []
  inner = training.training_step(tx)

  def counted(*given):
    traces.append(None)
    return inner(*given)

  step = jax.jit(counted, donate_argnums=(0, 1))
  batches = [training.batch(t) for t in range(3)]
  state = training.start(tx)
  for batch in batches:
    state = step(*state, batch)
  assert len(traces) == 1
  assert comparisons.all_finite(state)
  assert not any(x.is_deleted() for x in jax.tree.leaves(batches))


@every_name
def test_state_is_made_of_shapes_and_under_jit(name):
  tx, params = build(name), training.params()
  shapes = jax.eval_shape(lambda: params)
  assert types(tx.init(shapes)) == types(tx.init(params))
  comparisons.assert_equal(jax.jit(tx.init)(params), tx.init(params))


@every_name
def test_a_run_goes_on_from_what_was_saved(name):
  tx, step = stepping(name)
  whole = training.train(step, training.start(tx), range(4))
  half = training.train(step, training.start(tx), range(2))
  leaves, structure = jax.tree.flatten(half)
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  saved = [
    np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves
  ]
  read = [
    jax.random.wrap_key_data(jnp.asarray(x)) if is_key(leaf) else jnp.asarray(x)
    for x, leaf in zip(saved, leaves, strict=True)
  ]
  comparisons.assert_equal(
    training.train(step, structure.unflatten(read), range(2, 4)), whole
  )


@every_name
def test_injected_numbers_are_the_same(name):
  tx, step = stepping(name)
  other = injected(name)
  found, _ = training.train(
    training.jit(training.training_step(other)), training.start(other), range(3)
  )
  expected, _ = training.train(step, training.start(tx), range(3))
  comparisons.assert_close(found, expected, 1e-6)


@every_name
def test_a_gradient_that_is_not_finite_is_not_kept(name):
  """The numbers of the method itself; the base is wrapped by its user."""
  tx, step = stepping(name)
  params, state = training.train(step, training.start(tx), range(2))
  spoilt = training.batch(2)
  spoilt['y'] = spoilt['y'].at[:, 0].set(jnp.nan)
  _, after = step(params, state, spoilt)
  own = {
    'sampa': ('gradient',),
    'b_sam': ('momentum', 'precision'),
    'entropy_sgd': ('momentum', 'outer'),
  }
  for field in own.get(name, ()):
    if (name, field) == ('entropy_sgd', 'momentum'):
      assert comparisons.all_finite(after.momentum)  # at rest after three calls
    elif name == 'entropy_sgd':
      assert comparisons.all_finite(after.outer)
    else:
      comparisons.assert_equal(getattr(after, field), getattr(state, field))


@every_name
def test_in_a_wrapper_a_bad_batch_leaves_nothing(name):
  """As the whole step is taken back, the count of the method too."""
  tx = optax.apply_if_finite(build(name), 5)
  step = training.jit(training.training_step(optax.with_extra_args_support(tx)))
  params, state = training.train(step, training.start(tx), range(1))
  spoilt = training.batch(1)
  spoilt['y'] = spoilt['y'].at[:, 0].set(jnp.nan)
  rejected, _ = step(params, state, spoilt)
  comparisons.assert_equal(rejected, params)


def test_decoupled_wsam_takes_gradients_without_a_dtype():
  params = {'w': jnp.ones(2), 'steps': jnp.arange(2)}
  loss = lambda p: jnp.sum(p['w'] ** 4)
  base = optax.masked(optax.sgd(0.1), {'w': True, 'steps': False})
  tx = optax_sam.wsam_decoupled(base, learning_rate=0.1)
  grads = jax.grad(loss, allow_int=True)(params)
  updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
  alone = optax_sam.wsam_decoupled(optax.sgd(0.1), learning_rate=0.1)
  w = {'w': params['w']}
  expected, _ = alone.update({'w': grads['w']}, alone.init(w), w, value_fn=loss)
  comparisons.assert_equal({'w': updates['w']}, expected)


@every_name
def test_leaves_that_are_no_numbers_of_the_network_stay(name):
  tx = build(name)
  params = {**training.params(), 'steps': jnp.int32(3)}
  batch = training.batch()
  grads = {
    **jax.grad(training.loss)(training.params(), batch),
    'steps': jnp.int32(0),
  }
  if name in AROUND:  # theirs are the base's
    tx = getattr(optax_sam, name)(optax.sgd(0.1), **ROWS[name][0])
  with _OF_OPTAX:
    updates, state = tx.update(
      grads, tx.init(params), params, **training.functions(batch)
    )
  assert int(jnp.asarray(updates['steps'])) == 0
  if name == 'entropy_sgd':
    assert int(optax_sam.outer_params(params, state)['steps']) == 3


@pytest.mark.parametrize('name', [name for name in ROWS if name != 'b_sam'])
def test_converges(name):
  target = {'dense': jnp.array([1.0, -2.0]), 'norm': jnp.array([0.5])}

  def losses(params, batch):
    error = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), params, target)
    return sum(jax.tree.leaves(error)) * batch

  given = {'batch_like': jnp.ones(4)} if name == 'sampa' else {}
  changes = {'wsam_decoupled': {'rho': 1e-3}, 'entropy_sgd': {'noise': 0.0}}
  around = (optax.sgd(0.1),) if name in AROUND else ()
  arguments = {**ROWS[name][0], **given, **changes.get(name, {})}
  if name in AROUND:
    arguments['rho'] = 1e-3
  tx = getattr(optax_sam, name)(*around, **arguments)
  step, batch = training.training_step(tx, losses), jnp.ones(4)

  def body(state, _):
    return step(*state, batch), None

  params = jax.tree.map(jnp.zeros_like, target)
  (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=200)
  if name == 'entropy_sgd':
    params = optax_sam.outer_params(params, state)
  comparisons.assert_close(params, target, 5e-3)


_BAD = {
  'rho': [-0.1, float('nan'), '0.05', None, True],
  'steps': [0, 1.5, True],
  'alpha': [-0.1, 1.1, None],
  'mix': [-0.1, 1.1, 'half'],
  'gamma': [-0.1, None],
  'learning_rate': [-0.1, None],
  'b1': [-0.1, 1.0],
  'b2': [1.0, None],
  'damping': [-0.1],
  'prior_precision': [-1],
  'initial_precision': [0, -1.0],
  'micro_batches': [0, 2.5, True],
  'num_data': [0, None],
  'key': [0.5, 'seed'],
  'inner_steps': [0, 1.5],
  'inner_learning_rate': [-0.1],
  'scoping': [-0.1],
  'noise': [-0.1],
  'weight_decay': [-0.1],
  'sync_ascent': ['yes'],
}


@pytest.mark.parametrize(
  ('name', 'argument', 'value'),
  [
    (name, argument, value)
    for name in ROWS
    for argument in inspect.signature(getattr(optax_sam, name)).parameters
    for value in _BAD.get(argument, ())
  ],
)
def test_a_bad_value_is_refused(name, argument, value):
  with pytest.raises(ValueError, match=rf'^{argument} must be ') as info:
    build(name, **{argument: value})
  assert repr(value) in str(info.value)


def test_no_argument_is_forgotten():
  for name in ROWS:
    names = set(inspect.signature(getattr(optax_sam, name)).parameters)
    unchecked = {'base', 'batch_like', 'mask', 'axis_name'}
    assert names <= _BAD.keys() | unchecked, name


@pytest.mark.parametrize('name', AROUND)
def test_a_base_is_an_optimizer(name):
  with pytest.raises(
    ValueError, match=r'^base must be an optimizer, got 0\.05'
  ):
    getattr(optax_sam, name)(0.05, **ROWS[name][0])


@every_name
def test_complex_parameters_are_refused(name):
  with pytest.raises(ValueError, match="real, got complex numbers at 'w'"):
    build(name).init({'w': jnp.ones(2, jnp.complex64)})


@pytest.mark.parametrize('name', ['wsam_decoupled', 'lookbehind', 'sampa'])
def test_complex_parameters_that_are_left_out_descend(name):
  def losses(p, batch):
    return (jnp.sum(p['w'] ** 4) + jnp.sum(jnp.abs(p['c']) ** 2)) * batch

  batch = jnp.ones(2)
  loss = lambda p: jnp.mean(losses(p, batch))
  params = {'w': jnp.ones(2), 'c': jnp.ones(2, jnp.complex64)}
  changes = {'batch_like': batch} if name == 'sampa' else {}
  tx = getattr(optax_sam, name)(
    optax.sgd(0.1),
    **{**ROWS[name][0], **changes},
    mask={'w': True, 'c': False},
  )
  with _OF_OPTAX:
    updates, _ = tx.update(
      jax.grad(loss)(params),
      tx.init(params),
      params,
      per_example_value_fn=losses,
      batch=batch,
      value_fn=loss,
    )
  comparisons.assert_close(updates['c'], jnp.full(2, -0.2 + 0j), 1e-6)
  assert float(updates['w'][0]) < -0.3


@every_name
def test_parameters_are_asked_for(name):
  tx, params = build(name), training.params()
  with pytest.raises(ValueError, match='params must be given'):
    tx.update(params, tx.init(params), **training.functions(training.batch()))


@pytest.mark.parametrize('name', ['lookbehind', 'sampa', 'b_sam'])
def test_a_loss_is_asked_for(name):
  tx, params = build(name), training.params()
  words = 'function to differentiate' if name == 'lookbehind' else 'examples'
  with pytest.raises(ValueError, match=words):
    tx.update(params, tx.init(params), params)


def test_batches_of_another_size():
  tx, params = build('sampa'), training.params()
  given = training.functions(jax.tree.map(lambda x: x[:3], training.batch()))
  with pytest.raises(ValueError, match=r'batch must be like batch_like=.*'):
    tx.update(params, tx.init(params), params, **given)


def test_a_solution_is_asked_of_another_optimizer():
  params = training.params()
  with pytest.raises(ValueError, match='one EntropySgdState, but has 0'):
    optax_sam.outer_params(params, optax.adam(0.1).init(params))


def test_metrics_are_found():
  for name in ('lookbehind', 'sampa', 'b_sam'):
    tx, step = stepping(name)
    _, state = training.train(step, training.start(tx), range(2))
    found = optax_sam.metrics(state)
    assert (int(found['count']), int(found['second_gradients'])) == (2, 2)
    assert float(found['ascent_norm']) > 0
    assert float(found['perturbed_loss']) > 0
