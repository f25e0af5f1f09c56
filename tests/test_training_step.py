"""`make_step` equals the handwritten step."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

SAM = optax.chain(optax_sam.sam(0.5), optax.sgd(0.1, momentum=0.9))


def by_hand(tx):
  """Returns the step of the documentation."""

  def step(params, opt_state, batch):
    value_fn = lambda p: training.loss(p, batch)
    value, grads = jax.value_and_grad(value_fn)(params)
    updates, opt_state = tx.update(
      grads,
      opt_state,
      params,
      value_fn=value_fn,
      per_example_value_fn=training.losses,
      batch=batch,
    )
    return optax.apply_updates(params, updates), opt_state, value

  return step


def made(tx, loss_fn=training.loss, **kwargs):
  """Returns the step of `make_step` with only the loss as output."""
  step = optax_sam.make_step(
    loss_fn, tx, per_example_loss_fn=training.losses, **kwargs
  )

  def short(params, opt_state, batch):
    params, opt_state, output = step(params, opt_state, batch)
    return params, opt_state, output.loss

  return short


@table.every_path()
def test_the_hlo_equals_that_of_the_handwritten_step(name):
  """The results are bit-identical, and the cost is the same.

  What `make_step` passes to a method does not depend on its rule.
  """
  tx = table.ROWS[name].whole()
  given = (*training.start(tx), training.batch())
  lowered = [jax.jit(step(tx)).lower(*given) for step in (by_hand, made)]
  texts = [re.sub(r'@\w+', '', program.as_text()) for program in lowered]
  assert texts[0] == texts[1]
  flops = [program.cost_analysis()['flops'] for program in lowered]
  assert flops[0] == flops[1] > 0


@table.every_kind(lambda row: row.method.needs == 'examples')
def test_per_example_losses_are_sufficient(name):
  tx = table.ROWS[name].whole()
  given = (*training.start(tx), training.batch())
  steps = [jax.jit(made(tx)), jax.jit(made(tx, None))]
  found = [comparisons.without_keys(step(*given)) for step in steps]
  comparisons.assert_close(*found)
  flops = [
    step.lower(*given).compile().cost_analysis()['flops'] for step in steps
  ]
  assert flops[1] <= flops[0]


def sam_by_hand(params, velocity, batch):
  """Returns (parameters, velocity, loss) after a step, in NumPy."""
  gradient = jax.value_and_grad(training.loss)
  value, grads = gradient(params, batch)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  moved = jax.tree.map(lambda w, g: w + 0.5 * g / norm, params, grads)
  _, grads = gradient(moved, batch)
  velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
  params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
  return params, velocity, value


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('mode', ['eager', 'jit', 'scan', 'vmap'])
def test_all_transformations_give_the_same_steps(mode, parts):
  step = optax_sam.make_step(training.loss, SAM, accumulate_steps=parts)
  params, opt_state = training.start(SAM)
  if mode == 'scan':
    batches = jax.tree.map(
      lambda *x: jnp.stack(x), *[training.batch(t) for t in range(3)]
    )

    def body(carry, batch):
      *carry, output = step(*carry, batch)
      return tuple(carry), output

    (params, _), output = jax.lax.scan(body, (params, opt_state), batches)
    losses, counts = output.loss, output.metrics['step_count']
  else:
    call = jax.jit(step) if mode == 'jit' else step
    if mode == 'vmap':
      call = jax.vmap(step, in_axes=(0, 0, None))
      two = lambda x: jnp.stack([x, x])
      params, opt_state = jax.tree.map(two, (params, opt_state))
    losses, counts = [], []
    for t in range(3):
      params, opt_state, output = call(params, opt_state, training.batch(t))
      losses.append(output.loss)
      counts.append(output.metrics['step_count'])
    if mode == 'vmap':
      one = lambda x: x[1]
      params, losses, counts = jax.tree.map(one, (params, losses, counts))
  wanted = training.params()
  velocity = jax.tree.map(jnp.zeros_like, wanted)
  for t in range(3):
    wanted, velocity, value = sam_by_hand(wanted, velocity, training.batch(t))
    np.testing.assert_allclose(losses[t], value, rtol=1e-5)
    assert int(counts[t]) == t + 1
  comparisons.assert_close(params, wanted, 1e-5)


METHODS_OF_DEVICES = {
  'sam': lambda axis: optax.chain(
    optax_sam.sam(0.5, axis_name=axis, sync_ascent=axis is not None),
    optax.sgd(0.1),
  ),
  'entropy_sgd': lambda axis: optax_sam.entropy_sgd(key=0, axis_name=axis),
  'no method': lambda _: optax.chain(optax.sgd(0.1), optax_sam.swa(start=1)),
}


@functools.cache
def on_one_device(name):
  """Returns the parameters and the output of a step with the whole batch."""
  tx = METHODS_OF_DEVICES[name](None)
  step = optax_sam.make_step(training.loss, tx)
  params, _, output = step(*training.start(tx), training.batch())
  return params, output


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('mode', ['pmap', 'checked', 'unchecked'])
@pytest.mark.parametrize('name', METHODS_OF_DEVICES)
def test_four_devices_equal_one(name, mode, parts):
  """Each device has a quarter of the batch."""
  tx = METHODS_OF_DEVICES[name]('data')
  step = optax_sam.make_step(
    lambda p, batch: (training.loss(p, batch), batch['x']),
    tx,
    has_aux=True,
    accumulate_steps=parts,
    axis_name='data',
  )
  state, batch = training.start(tx), training.batch()
  devices = jax.devices()[:4]
  if mode == 'pmap':
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    run = jax.pmap(
      step, axis_name='data', in_axes=(None, None, 0), devices=devices
    )
    found, _, output = run(*state, split)
    # All replicas are equal.
    for leaf in jax.tree.leaves((found, output.loss, output.metrics)):
      assert (leaf == leaf[:1]).all()
    first = lambda x: x[0]
    found, loss, metrics = jax.tree.map(
      first, (found, output.loss, output.metrics)
    )
    assert output.aux.shape == (4, *((2, 1) if parts == 2 else (2,)), 3)
  else:
    axis = jax.P(*[None] * (parts - 1), 'data')
    run = jax.shard_map(
      step,
      mesh=jax.sharding.Mesh(devices, ('data',)),
      in_specs=(jax.P(), jax.P(), jax.P('data')),
      out_specs=(
        jax.P(),
        jax.P(),
        optax_sam.StepOutput(jax.P(), axis, jax.P()),
      ),
      check_vma=mode == 'checked',
    )
    found, _, (loss, _, metrics) = jax.jit(run)(*state, batch)
  expected, output = on_one_device(name)
  comparisons.assert_close(
    (found, loss, metrics), (expected, output.loss, output.metrics), 2e-6
  )


@pytest.mark.parametrize('mode', ['pmap', 'checked', 'unchecked'])
def test_a_missing_axis_name_raises(mode):
  tx = optax.sgd(0.1)
  step = optax_sam.make_step(training.loss, tx)
  batch = training.batch()
  if mode == 'pmap':
    batch = jax.tree.map(lambda x: x[:, None], batch)
    run = jax.pmap(step, axis_name='data', in_axes=(None, None, 0))
  else:
    run = jax.shard_map(
      step,
      mesh=jax.sharding.Mesh(jax.devices()[:4], ('data',)),
      in_specs=(jax.P(), jax.P(), jax.P('data')),
      out_specs=jax.P(),
      check_vma=mode == 'checked',
    )
  with pytest.raises(ValueError, match=r"axis_name must name .*'data'"):
    run(*training.start(tx), batch)


def _on_two_devices(tx, loss_fn, params):
  step = jax.pmap(
    optax_sam.make_step(loss_fn, tx, axis_name='data'),
    axis_name='data',
    in_axes=(None, None, 0),
  )
  return step(params, tx.init(params), jnp.array([[1.0], [9.0]]))[0]


def test_gradients_for_alternating_are_averaged_over_devices():
  tx = optax_sam.alternating(optax_sam.sam(0.5, axis_name=()), optax.sgd(0.1))
  loss_fn = lambda w, x: jnp.mean((x * w - 1) ** 2)
  found = _on_two_devices(tx, loss_fn, jnp.ones(()))
  # The first call perturbs along the mean gradient, (0 + 144) / 2.
  np.testing.assert_allclose(found, [1.5, 1.5], rtol=1e-6)


def test_a_method_that_averages_over_no_device_raises():
  tx = optax.chain(optax_sam.sam(axis_name=()), optax.sgd(0.1))
  with pytest.raises(
    ValueError, match=r"axis_name must be .* got 'data' .*\(\)"
  ):
    _on_two_devices(tx, lambda w, x: jnp.mean((x * w) ** 2), jnp.ones(()))


@pytest.mark.parametrize('kind', ['lookbehind', 'sampa'])
def test_frozen_leaves_do_not_make_the_steps_of_devices_differ(kind):
  """The base optimizer clips by a norm that includes the frozen leaf."""
  labels = {'a': 'frozen', 'b': 'trained'}
  base = optax.chain(
    optax.clip_by_global_norm(0.1),
    optax.partition(
      {'trained': optax.sgd(0.1), 'frozen': optax.set_to_zero()}, labels
    ),
  )
  given = {
    'mask': optax_sam.trainable(labels, frozen='frozen'),
    'axis_name': 'data',
  }
  if kind == 'sampa':
    tx = optax_sam.sampa(base, batch_like=jnp.ones(1), **given)
  else:
    tx = optax_sam.lookbehind(base, **given)
  params = {'a': jnp.ones(()), 'b': jnp.ones(())}
  losses = lambda p, x: (x * p['a'] * p['b']) ** 2
  step = jax.pmap(
    optax_sam.make_step(None, tx, per_example_loss_fn=losses, axis_name='data'),
    axis_name='data',
    in_axes=(None, None, 0),
  )
  after, _, _ = step(params, tx.init(params), jnp.array([[1.0], [9.0]]))
  assert after['b'][0] == after['b'][1] != 1
  np.testing.assert_array_equal(after['a'], [1, 1])


@pytest.mark.parametrize('axis_name', ['data', ['data']])
@pytest.mark.parametrize('tx', [SAM, optax.sgd(0.1)])
def test_an_axis_name_outside_of_devices_raises(tx, axis_name):
  step = optax_sam.make_step(training.loss, tx, axis_name=axis_name)
  with pytest.raises(ValueError, match='axis_name must name axes of the'):
    jax.jit(step)(*training.start(tx), training.batch())


@pytest.mark.parametrize('tx', [SAM, optax.adam(0.1)])
def test_arguments_in_another_order_and_other_states_raise(tx):
  (params, state), batch = training.start(tx), training.batch()
  of_another = optax.chain(optax_sam.look_sam(), optax.sgd(0.1)).init(params)
  of_less = tx.init(params['dense'])
  for given in (
    (state, params, batch),
    (params, batch, state),
    (params, None, batch),
    (params, of_another, batch),
    *(() if of_less == state else ((params, of_less, batch),)),
  ):
    step = optax_sam.make_step(training.loss, tx)
    with pytest.raises(ValueError, match=r'opt_state must be tx\.init'):
      step(*given)


@pytest.mark.parametrize('parts', [1, 2])
def test_an_averaged_loss_raises(parts):
  tx = METHODS_OF_DEVICES['sam']('data')
  averaged = lambda p, b: jax.lax.pmean(training.loss(p, b), 'data')
  step = optax_sam.make_step(
    averaged, tx, accumulate_steps=parts, axis_name='data'
  )
  run = jax.shard_map(
    step,
    mesh=jax.sharding.Mesh(jax.devices()[:4], ('data',)),
    in_specs=(jax.P(), jax.P(), jax.P('data')),
    out_specs=jax.P(),
  )
  with pytest.raises(ValueError, match=r'loss_fn must .* leave jax.lax.pmean'):
    run(*training.start(tx), training.batch())


@pytest.mark.parametrize(('name', 'parts'), [('ae_sam', 2), ('k_sam', 4)])
def test_steps_outside_of_jit_do_not_recompile(name, parts):
  tx = table.ROWS[name].whole()
  step = optax_sam.make_step(
    training.loss,
    tx,
    per_example_loss_fn=training.losses,
    accumulate_steps=parts,
  )
  compiled = []

  def listen(event, *_, **__):
    compiled.append('backend_compile' in event)

  state, batch = training.start(tx), training.batch()
  for _ in range(2):
    state = step(*state, batch)[:2]
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    step(*state, batch)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert sum(compiled) == 0


def test_both_passes_use_the_same_key_and_aux_is_of_the_first():
  """With accumulation, aux has one entry for each micro-batch."""

  def loss_fn(w, batch, key, scale):
    noise = jax.random.normal(key, w.shape)
    value = scale * jnp.mean(batch @ (w + noise)) + jnp.sum((w + noise) ** 2)
    return value, {'noise': noise, 'w': w, 'rows': batch[:, 0]}

  tx = optax.chain(optax_sam.sam(0.5), optax.sgd(0.1))
  w, key = jnp.arange(3.0), jax.random.key(3)
  batch = jnp.arange(12.0).reshape(4, 3)
  noise = np.asarray(jax.random.normal(key, (3,)))
  gradient = lambda w: 2 * np.mean(batch, 0) + 2 * (w + noise)
  clean = gradient(np.asarray(w))
  expected = w - 0.1 * gradient(w + 0.5 * clean / np.linalg.norm(clean))
  for parts in (1, 2):
    step = optax_sam.make_step(
      loss_fn, tx, has_aux=True, accumulate_steps=parts
    )
    after, _, output = jax.jit(step)(w, tx.init(w), batch, key, 2.0)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    every = (w, noise) if parts == 1 else ([w, w], [noise, noise])
    np.testing.assert_array_equal(output.aux['w'], every[0])
    np.testing.assert_allclose(output.aux['noise'], every[1], rtol=1e-6)
    rows = [0, 3, 6, 9] if parts == 1 else [[0, 6], [3, 9]]
    assert output.aux['rows'].tolist() == rows


@pytest.mark.parametrize('parts', [1, 2])
def test_integer_leaves_and_plain_optimizers_are_accepted(parts):
  loss_fn = lambda p, batch: jnp.mean(batch) * jnp.sum(p['w'] ** 2)
  params = {'w': jnp.ones(2), 'count': jnp.int32(3)}
  for tx in (SAM, optax.sgd(0.1), optax.polyak_sgd()):
    step = optax_sam.make_step(loss_fn, tx, accumulate_steps=parts)
    with jax.numpy_dtype_promotion('standard'):  # of Optax
      after, _, output = step(params, tx.init(params), jnp.ones(4))
    assert after['count'] == 3
    assert after['count'].dtype == jnp.int32
    assert float(after['w'][0]) < 1
    assert bool(output.metrics) == (tx is SAM)
    assert output.aux is None


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('method', [None, 'sam', 'k_sam'])
def test_line_searches_get_their_arguments(method, parts):
  base = optax.lbfgs()
  tx = optax.chain(table.ROWS[method].alone(), base) if method else base
  step = jax.jit(made(tx, accumulate_steps=parts))
  params, opt_state = training.start(tx)
  losses = []
  with jax.numpy_dtype_promotion('standard'):
    for _ in range(5):
      params, opt_state, loss = step(params, opt_state, training.batch())
      losses.append(float(loss))
  assert losses[-1] < 0.05 < losses[0]


def test_a_mesa_loss_can_be_used():
  """The average of MESA is an argument, the logits are the aux."""
  mesa = optax_sam.mesa_loss(temperature=1.0, weight=1.0, decay=0.5)
  epoch = 5

  def loss_fn(w, x, average):
    logits = x @ w
    targets = x @ average.average
    return jnp.mean(logits**2) + mesa.loss(logits, targets, epoch), logits

  tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
  step = jax.jit(optax_sam.make_step(loss_fn, tx, has_aux=True))
  w, x = jnp.ones((3, 2)), jnp.arange(12.0).reshape(4, 3) / 10
  average, opt_state = mesa.init(w), tx.init(w)
  average = mesa.update(w, average)
  w, _, output = step(w, opt_state, x, average)
  np.testing.assert_allclose(output.aux, x @ jnp.ones((3, 2)), rtol=1e-6)
  assert (w < 1).all()


LOSS = training.loss
BAD = {
  'losses': ((training.losses, {}), r'loss_fn must return a real scalar, got '),
  'a pair': ((lambda p, b: (LOSS(p, b), 1), {}), 'write has_aux=True'),
  'a dict': ((lambda p, b: {'loss': LOSS(p, b)}, {}), 'loss_fn must return a'),
  'nothing': ((lambda *_: None, {}), 'loss_fn must return a real scalar'),
  'an integer': ((lambda *_: jnp.int32(1), {}), 'a real scalar, got int32'),
  'no aux': ((LOSS, {'has_aux': True}), r'return \(loss, aux\).* got float32'),
  'no loss': ((None, {}), 'loss_fn must be a function .* got None'),
  'a number': ((3, {}), 'loss_fn must be a function .* got 3'),
  'aux of nothing': (
    (None, {'has_aux': True, 'per_example_loss_fn': training.losses}),
    'has_aux=True needs a loss_fn',
  ),
  'a scalar': (
    (None, {'per_example_loss_fn': LOSS}),
    r'per_example_loss_fn must return .* shape \(8,\), got shape \(\)',
  ),
  'no function': (
    (LOSS, {'per_example_loss_fn': 3}),
    'per_example_loss_fn must be a function .* got 3',
  ),
  'half a step': (
    (LOSS, {'accumulate_steps': 0.5}),
    'accumulate_steps must be a Python integer, got 0.5',
  ),
  'no step': ((LOSS, {'accumulate_steps': 0}), 'must be at least 1, got 0'),
}


@pytest.mark.parametrize('name', BAD)
def test_invalid_arguments_raise(name):
  (loss_fn, kwargs), message = BAD[name]
  with pytest.raises(ValueError, match=message):
    jax.jit(optax_sam.make_step(loss_fn, SAM, **kwargs))(
      *training.start(SAM), training.batch()
    )


def test_a_missing_per_example_loss_raises_with_the_argument():
  tx = table.ROWS['k_sam'].whole()
  with pytest.raises(ValueError, match='per_example_loss_fn must be given'):
    optax_sam.make_step(LOSS, tx)(*training.start(tx), training.batch())
