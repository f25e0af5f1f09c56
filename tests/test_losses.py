"""SAF and MESA: what they add to a loss, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_sam
from optax_sam.flax import TrainState
from tests import compiling
from tests.distributed import processes

TAU, WEIGHT = 2.0, 0.7
FLOAT64 = {'table_dtype': 'float64'}


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def divergences(z, y, tau=TAU):
  p, q = softmax(y / tau), softmax(z / tau)
  return np.sum(p * np.log(p / q), axis=-1)


def logits_of(seed, rows=4, classes=3):
  return 3 * np.random.default_rng(seed).standard_normal((rows, classes))


def filled(saf, examples, epochs, classes=3):
  """Returns the state after epochs of which every one has logits of its own."""
  state, ids = saf.init(examples, classes), np.arange(examples)
  for epoch in epochs:
    state = saf.update(
      jnp.asarray(logits_of(epoch, examples)), state, ids, epoch
    )
  return state


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('kind', ['saf', 'mesa'])
def test_value_and_gradient_are_those_of_the_formula(kind):
  z, y = logits_of(1), logits_of(2)
  if kind == 'mesa':
    mesa = optax_sam.mesa_loss(TAU, WEIGHT)
    term = lambda z: mesa.loss(z, jnp.asarray(y))
  else:
    saf = optax_sam.saf_loss(TAU, WEIGHT, **FLOAT64)
    ids = np.array([6, 1, 0, 4])
    state = saf.update(jnp.asarray(y), saf.init(7, 3), ids, 2)
    term = lambda z: saf.loss(z, state, ids, 5)
  value, gradient = jax.jit(jax.value_and_grad(term))(jnp.asarray(z))
  expected = WEIGHT * TAU**2 * divergences(z, y).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  difference = softmax(z / TAU) - softmax(y / TAU)
  np.testing.assert_allclose(
    gradient, WEIGHT * TAU * difference / len(z), rtol=0, atol=1e-14
  )


@pytest.mark.usefixtures('float64')
def test_the_curvature_is_that_of_the_formula():
  """So that products with the Hessian see the term as well."""
  mesa, y = optax_sam.mesa_loss(TAU, WEIGHT), jnp.asarray(logits_of(2))
  z, direction = jnp.asarray(logits_of(1)), jnp.asarray(logits_of(3))
  gradient = jax.grad(lambda z: mesa.loss(z, y))
  _, found = jax.jvp(gradient, (z,), (direction,))
  q = softmax(z / TAU)
  d = np.asarray(direction) / TAU
  expected = q * (d - np.sum(q * d, axis=-1, keepdims=True))
  np.testing.assert_allclose(found, WEIGHT * TAU * expected / 4, atol=1e-14)


def test_no_gradient_goes_to_the_target():
  mesa, z = optax_sam.mesa_loss(), jnp.asarray(logits_of(1), 'float32')
  assert not jnp.any(jax.grad(lambda y: mesa.loss(z, y))(2 * z))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_where_nothing_has_changed_there_is_no_gradient(dtype):
  z = jnp.asarray(logits_of(1, rows=64), dtype)
  saf, mesa = optax_sam.saf_loss(), optax_sam.mesa_loss()
  state, ids = saf.init(64, 3), np.arange(64)
  state = saf.update(z, state, ids, 2)
  for term, kept in (
    (mesa.loss, z),
    (lambda z, state: saf.loss(z, state, ids, 5), state),
  ):
    value, gradient = jax.jit(jax.value_and_grad(term))(z, kept)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    # But for rounding, against 0.02 of logits that have nothing in common.
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient.astype('float32'), 0, atol=1e-8)


def test_a_slot_is_read_before_it_is_written():
  saf = optax_sam.saf_loss(lag=1, start_epoch=0)
  state, ids = filled(saf, 4, [0]), np.arange(4)
  z = jnp.asarray(logits_of(9), 'float32')
  term = saf.loss(z, state, ids, 1)
  after = saf.update(z, state, ids, 1)
  assert term > 0
  np.testing.assert_allclose(saf.loss(z, after, ids, 2), 0, atol=1e-6)
  np.testing.assert_array_equal(after.logits[:, 0], z)
  # Pure: what was there is as it was.
  assert saf.loss(z, state, ids, 1) == term


def test_early_epochs_only_fill_the_table():
  saf, ids = optax_sam.saf_loss(), np.arange(4)
  state = filled(saf, 4, range(5))
  z = jnp.asarray(logits_of(9), 'float32')
  terms = [float(saf.loss(z, state, ids, epoch)) for epoch in range(8)]
  assert terms[:5] == [0] * 5
  assert min(terms[5:]) > 0
  traced = jax.jit(lambda epoch: saf.loss(z, state, ids, epoch))
  assert [float(traced(epoch)) for epoch in (4, 5)] == terms[4:6]


@pytest.mark.usefixtures('float64')
def test_examples_without_a_target_add_nothing_but_count():
  """Zeros are not their targets: these would draw logits together."""
  saf = optax_sam.saf_loss(TAU, WEIGHT, **FLOAT64)
  y, z = logits_of(1), logits_of(2)
  state = saf.update(jnp.asarray(y[:2]), saf.init(4, 3), np.arange(2), 2)
  term = lambda z: saf.loss(z, state, np.arange(4), 5)
  value, gradient = jax.value_and_grad(term)(jnp.asarray(z))
  expected = WEIGHT * TAU**2 * divergences(z[:2], y[:2]).sum() / 4
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  assert not np.any(gradient[2:])
  # A slot of another epoch isn't a target either.
  assert saf.loss(jnp.asarray(z), state, np.arange(4), 6) == 0


def transcription(batches, examples, lag=3, start=5):
  """SAF with dictionaries, no tables: terms and gradients to the logits."""
  written, found = {}, []
  for epoch, ids, z in batches:
    gradient, total = np.zeros_like(z), 0.0
    for row, example in enumerate(ids):
      y = written.get((example, epoch % lag))
      if epoch >= start and y is not None:
        total += TAU**2 * divergences(z[row], y)
        gradient[row] = TAU * (softmax(z[row] / TAU) - softmax(y / TAU))
    found.append((WEIGHT * total / len(ids), WEIGHT * gradient / len(ids)))
    for row, example in enumerate(ids):
      written[example, epoch % lag] = z[row]
  assert {example for example, _ in written} == set(range(examples))
  return found


@pytest.mark.usefixtures('float64')
def test_eight_epochs_are_those_of_a_transcription():
  examples, rows = 8, 3  # two of the examples are left out of each epoch
  generator, batches = np.random.default_rng(0), []
  for epoch in range(8):
    order = generator.permutation(examples)
    for ids in (order[:rows], order[rows : 2 * rows]):
      batches += [(epoch, ids, 3 * generator.standard_normal((rows, 3)))]
  saf = optax_sam.saf_loss(TAU, WEIGHT, **FLOAT64)

  @jax.jit
  def step(state, z, ids, epoch):
    found = jax.value_and_grad(saf.loss)(z, state, ids, epoch)
    return found, saf.update(z, state, ids, epoch)

  state = saf.init(examples, 3)
  for (epoch, ids, z), expected in zip(
    batches, transcription(batches, examples), strict=True
  ):
    (term, gradient), state = step(state, z, ids, epoch)
    np.testing.assert_allclose(term, expected[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-14)
  assert step._cache_size() == 1


def test_rows_that_only_fill_a_batch_up():
  saf, mesa = optax_sam.saf_loss(), optax_sam.mesa_loss()
  state = filled(saf, 4, range(5))
  z = jnp.asarray(logits_of(9), 'float32')
  padded = z.at[2:].set(jnp.nan)
  ids, is_example = np.array([3, 1, 0, 0]), np.arange(4) < 2
  y = jnp.asarray(logits_of(8), 'float32').at[3].set(jnp.nan)
  for term in (
    lambda z, rows, shown: saf.loss(z, state, ids[rows], 5, shown),
    lambda z, rows, shown: mesa.loss(z, y[rows], shown),
  ):
    gradient = jax.value_and_grad(term)
    value, change = gradient(padded, slice(4), is_example)
    part, part_change = gradient(z[:2], slice(2), None)
    # Half of the rows: they count in the mean.
    np.testing.assert_allclose(value, part / 2, rtol=1e-6)
    np.testing.assert_allclose(change[:2], part_change / 2, rtol=1e-5)
    assert not jnp.any(change[2:])
  after = saf.update(z, state, ids, 5, is_example)
  changed = jnp.any(after.logits != state.logits, axis=(1, 2))
  assert changed.tolist() == [False, True, False, True]


def test_logits_that_are_not_finite_are_not_written():
  saf, ids = optax_sam.saf_loss(), np.arange(4)
  state = filled(saf, 4, [2])
  z = jnp.asarray(logits_of(9), 'float32').at[1, 2].set(jnp.inf)
  for epoch, filled_then in ((5, [True] * 4), (6, [True, False, True, True])):
    after = saf.update(z, state, ids, epoch)
    np.testing.assert_array_equal(after.logits[1], state.logits[1])
    np.testing.assert_array_equal(after.logits[2, epoch % 3], z[2])
    assert after.filled[:, epoch % 3].tolist() == filled_then


@pytest.mark.usefixtures('float64')
def test_mesa_updates_its_average_before_it_is_used():
  decay, rate = 0.9, 0.3
  mesa = optax_sam.mesa_loss(TAU, WEIGHT, decay=decay)
  x = logits_of(0, rows=5)

  @jax.jit
  def step(w, state):
    state = mesa.update(w, state)
    term = lambda w: mesa.loss(x @ w, x @ state.average)
    value, gradient = jax.value_and_grad(term)(w)
    return w - rate * (gradient + jnp.cos(w)), state, value

  w = logits_of(1, rows=3)
  v, found, state = w.copy(), jnp.asarray(w), mesa.init(jnp.asarray(w))
  for number in range(6):
    v = decay * v + (1 - decay) * w
    z, y = x @ w, x @ v
    expected = WEIGHT * TAU**2 * divergences(z, y).mean()
    change = WEIGHT * TAU * (softmax(z / TAU) - softmax(y / TAU)) / len(z)
    w = w - rate * (x.T @ change + np.cos(w))
    found, state, value = step(found, state)
    # The average starts at the weights, and so without a term.
    assert (value > 0) == (number > 0)
    np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.average, v, rtol=0, atol=1e-14)


def test_mesa_keeps_a_wide_average_of_any_tree():
  mesa = optax_sam.mesa_loss(decay=0.5)
  tree = {'w': jnp.ones(2, 'bfloat16'), 'n': jnp.int32(1), 'b': jnp.float32(0)}
  state = mesa.init(tree)
  later = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree)
  after = mesa.update(later, state).average
  assert after['w'].dtype == jnp.float32
  assert after['w'].tolist() == [1.5, 1.5]
  assert (int(after['n']), float(after['b'])) == (2, 0.5)
  # What stands still stays where it is to the bit, after any number of steps.
  still = optax_sam.mesa_loss()
  w = jnp.asarray(logits_of(0), 'float32')
  np.testing.assert_array_equal(still.update(w, still.init(w)).average, w)
  broken = {**later, 'b': jnp.float32(jnp.nan)}
  same = mesa.update(broken, state).average
  assert all(map(jnp.array_equal, same.values(), state.average.values()))


def network(classes=10, width=64):
  def apply(params, x):
    return jnp.tanh(x @ params['in']) @ params['out']

  shapes = {'in': (32, width), 'out': (width, classes)}
  params = {
    name: 0.3 * jax.random.normal(jax.random.key(number), shape)
    for number, (name, shape) in enumerate(shapes.items())
  }
  batch = {
    'x': jax.random.normal(jax.random.key(2), (512, 32)),
    'y': jnp.arange(512) % classes,
    'ids': jnp.arange(512)[::-1],
  }
  return apply, params, batch


def stepping(apply, kind, weight=0.3):
  """Returns a whole training step, and what the term keeps before it."""
  saf = optax_sam.saf_loss(weight=weight)
  mesa = optax_sam.mesa_loss(weight=weight)
  tx = optax.sgd(0.1, 0.9)

  def step(params, opt_state, memory, batch, epoch):
    if kind == 'mesa':
      memory = mesa.update(params, memory)
      targets = apply(memory.average, batch['x'])

    def loss(params):
      logits = apply(params, batch['x'])
      own = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
      total = jnp.mean(own)
      if kind == 'saf':
        total += saf.loss(logits, memory, batch['ids'], epoch)
      if kind == 'mesa':
        total += mesa.loss(logits, targets)
      return total, logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    if kind == 'saf':
      memory = saf.update(logits, memory, batch['ids'], epoch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, memory

  def init(params):
    memories = {
      'saf': lambda: saf.init(1024, 10),
      'mesa': lambda: mesa.init(params),
    }
    return tx.init(params), memories.get(kind, tuple)()

  return step, init


def test_what_a_step_costs():
  apply, params, batch = network(width=256)
  flops = {}
  for kind in (None, 'saf', 'mesa'):
    step, init = stepping(apply, kind)
    args = (params, *jax.eval_shape(init, params), batch, 5)
    program = jax.jit(step, **compiling.READ_AS_USERS)
    flops[kind] = program.lower(*args).compile().cost_analysis()['flops']
  assert 1 < flops['saf'] / flops[None] < 1.02
  # A gradient is three passes here but for the first layer's inputs, to which
  # there is none.
  assert 1.2 < flops['mesa'] / flops[None] < 1.5


def test_a_step_writes_the_table_in_place():
  apply, params, batch = network()
  step, init = stepping(apply, 'saf')
  opt_state, memory = jax.eval_shape(lambda: init(params))
  memory = optax_sam.SafState(
    *(jax.ShapeDtypeStruct((10**5, *x.shape[1:]), x.dtype) for x in memory)
  )
  program = jax.jit(step, donate_argnums=2, **compiling.READ_AS_USERS)
  compiled = program.lower(params, opt_state, memory, batch, 5).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 2**20 < memory.logits.size


@pytest.mark.parametrize('kind', ['saf', 'mesa'])
def test_a_weight_of_zero_is_the_base_to_the_bit(kind):
  apply, start, batch = network()
  results = {}
  for name, weight in ((None, 0.0), (kind, 0.0), (kind, 0.3)):
    step, init = stepping(apply, name, weight)
    step = jax.jit(step, **compiling.AS_USERS)
    params, (opt_state, memory) = start, init(start)
    for epoch in range(7):
      params, opt_state, memory = step(params, opt_state, memory, batch, epoch)
    results[name, weight] = params
  base, zero, more = results.values()
  for name in base:
    np.testing.assert_array_equal(zero[name], base[name])
    assert jnp.any(more[name] != base[name])


def test_a_state_of_flax_carries_the_table():
  class State(TrainState):
    memory: optax_sam.SafState

  apply, params, batch = network()
  saf = optax_sam.saf_loss()
  state = State.create(
    apply_fn=apply, params=params, tx=optax.sgd(0.1), memory=saf.init(512, 10)
  )

  @jax.jit
  def step(state, epoch):
    def loss(params):
      logits = state.apply_fn(params, batch['x'])
      return saf.loss(logits, state.memory, batch['ids'], epoch), logits

    (term, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    memory = saf.update(logits, state.memory, batch['ids'], epoch)
    return state.apply_gradients(grads=grads, memory=memory), term

  moved = state.replace(params=jax.tree.map(lambda x: 2 * x, params))
  moved, first = step(moved, 2)
  after, second = step(moved.replace(params=params), 5)
  assert first == 0 < second
  assert jnp.all(after.memory.filled[:, 2])
  assert int(after.step) == 2
  assert any(jnp.any(after.params[name] != params[name]) for name in params)


@pytest.mark.parametrize('build', [optax_sam.saf_loss, optax_sam.mesa_loss])
def test_numbers_may_be_traced(build):
  z, y = (jnp.asarray(logits_of(seed), 'float32') for seed in (1, 2))

  def term(temperature, weight):
    made = build(temperature, weight)
    if isinstance(made, optax_sam.MesaLoss):
      return made.loss(z, y)
    ids = jnp.arange(4)
    return made.loss(z, made.update(y, made.init(4, 3), ids, 2), ids, 5)

  expected = WEIGHT * TAU**2 * divergences(z, y).mean()
  np.testing.assert_allclose(jax.jit(term)(TAU, WEIGHT), expected, rtol=1e-5)


def test_states_survive_a_checkpoint(tmp_path):
  saf = optax_sam.saf_loss(table_dtype='bfloat16')
  mesa = optax_sam.mesa_loss()
  params = {'w': jnp.arange(3.0)}
  states = {'saf': filled(saf, 4, [1, 2]), 'mesa': mesa.init(params)}
  with ocp.StandardCheckpointer() as checkpoints:
    checkpoints.save(tmp_path / 'states', states)
    checkpoints.wait_until_finished()
    like = {'saf': saf.init(4, 3), 'mesa': mesa.init(params)}
    found = checkpoints.restore(tmp_path / 'states', like)
  assert jax.tree.structure(found) == jax.tree.structure(states)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(states), strict=True
  ):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def test_a_table_may_be_of_half_the_size():
  wide = filled(optax_sam.saf_loss(), 4, range(3))
  saf = optax_sam.saf_loss(table_dtype='bfloat16')
  half = filled(saf, 4, range(3))
  assert half.logits.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.logits, wide.logits, rtol=2**-8)
  z = jnp.asarray(logits_of(9), 'float32')
  term, other = (saf.loss(z, one, np.arange(4), 5) for one in (half, wide))
  np.testing.assert_allclose(term, other, rtol=0.02)


@pytest.mark.parametrize(
  ('build', 'given', 'complaint'),
  [
    (optax_sam.saf_loss, {'temperature': 0}, 'temperature must be above 0'),
    (optax_sam.saf_loss, {'weight': -1}, 'weight must be at least 0'),
    (optax_sam.saf_loss, {'lag': 0}, 'lag must be at least 1'),
    (optax_sam.saf_loss, {'lag': 1.5}, 'lag must be a Python integer'),
    (optax_sam.saf_loss, {'start_epoch': -1}, 'start_epoch must be at least 0'),
    (optax_sam.saf_loss, {'table_dtype': 'int8'}, 'table_dtype must be None'),
    (optax_sam.mesa_loss, {'temperature': -1}, 'temperature must be above 0'),
    (optax_sam.mesa_loss, {'weight': -1}, 'weight must be at least 0'),
    (optax_sam.mesa_loss, {'decay': 1}, 'decay must be at least 0 and below 1'),
  ],
)
def test_bad_settings_are_named(build, given, complaint):
  with pytest.raises(ValueError, match=complaint):
    build(**given)


@pytest.mark.parametrize(
  ('changes', 'complaint'),
  [
    ({'logits': jnp.zeros(4)}, r'shape \(B, classes\), got float32 of shape'),
    ({'logits': jnp.zeros((4, 3), int)}, 'logits must be floating-point'),
    ({'logits': jnp.zeros((4, 2))}, r'write init\(num_examples, 2\)'),
    ({'ids': np.array([0, 1, 2, 4])}, 'ids must be from 0 to 3, .* got 0 to 4'),
    ({'ids': np.array([0, 1, -1, 2])}, 'is_example to False, and their ids'),
    ({'ids': np.arange(3)}, r'ids must be integers of shape \(4,\)'),
    ({'ids': np.arange(4.0)}, 'ids must be integers of .* got float'),
    ({'epoch': 5.0}, r'epoch must be integers of shape \(\), got float'),
    ({'epoch': -1}, 'epoch must be at least 0'),
  ],
)
def test_bad_batches_are_named(changes, complaint):
  saf = optax_sam.saf_loss()
  given = {
    'logits': jnp.zeros((4, 3)),
    'state': saf.init(4, 3),
    'ids': np.arange(4),
    'epoch': 5,
  } | changes
  for function in (saf.loss, saf.update):
    with pytest.raises(ValueError, match=complaint):
      function(**given)


def test_targets_of_another_batch_are_named():
  with pytest.raises(
    ValueError, match=r'targets must have the shape .* \(4, 3'
  ):
    optax_sam.mesa_loss().loss(jnp.zeros((4, 3)), jnp.zeros((5, 3)))


def test_ids_out_of_range_have_no_target_inside_a_program():
  saf = optax_sam.saf_loss()
  state = filled(saf, 4, range(5))
  z = jnp.asarray(logits_of(9, rows=3), 'float32')
  ids, one = jnp.array([-1, 2, 4]), jnp.array([2])
  found = jax.jit(saf.loss)(z, state, ids, 5)
  np.testing.assert_allclose(
    found, saf.loss(z[1:2], state, one, 5) / 3, rtol=1e-6
  )
  after = jax.jit(saf.update)(z, state, ids, 5)
  alone = saf.update(z[1:2], state, one, 5)
  np.testing.assert_array_equal(after.logits, alone.logits)
  np.testing.assert_array_equal(after.filled, alone.filled)


def test_on_eight_devices():
  processes.pass_on_eight_devices('tests/distributed/tables.py', at_least=5)
