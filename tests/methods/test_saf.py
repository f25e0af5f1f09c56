"""SAF."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.flax import TrainState
from tests import compiling
from tests.methods import auxiliary
from tests.methods.auxiliary import TAU, WEIGHT, logits_of, network, stepping
from tests.oracles import saf as rules

FLOAT64 = {'table_dtype': 'float64'}
BUILD = optax_sam.saf_loss


def filled(saf, examples, epochs, classes=3):
  """Returns the state after epochs of which every one has logits of its own."""
  state, ids = saf.init(examples, classes), np.arange(examples)
  for epoch in epochs:
    state = saf.update(
      jnp.asarray(logits_of(epoch, examples)), state, ids, epoch
    )
  return state


@pytest.mark.usefixtures('float64')
def test_value_and_gradient_are_those_of_the_formula():
  z, y = logits_of(1), logits_of(2)
  saf, ids = BUILD(TAU, WEIGHT, **FLOAT64), np.array([6, 1, 0, 4])
  state = saf.update(jnp.asarray(y), saf.init(7, 3), ids, 2)
  term = lambda z: saf.loss(z, state, ids, 5)
  value, gradient = jax.jit(jax.value_and_grad(term))(jnp.asarray(z))
  expected = rules.term_and_gradient(z, y, TAU, WEIGHT)
  np.testing.assert_allclose(value, expected[0], rtol=1e-12)
  np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_where_nothing_has_changed_there_is_no_gradient(dtype):
  z, saf = jnp.asarray(logits_of(1, rows=64), dtype), BUILD()
  ids = np.arange(64)
  state = saf.update(z, saf.init(64, 3), ids, 2)
  auxiliary.assert_no_term(lambda z: saf.loss(z, state, ids, 5), z)


def test_a_slot_is_read_before_it_is_written():
  saf = BUILD(lag=1, start_epoch=0)
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
  saf, ids = BUILD(), np.arange(4)
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
  saf = BUILD(TAU, WEIGHT, **FLOAT64)
  y, z = logits_of(1), logits_of(2)
  state = saf.update(jnp.asarray(y[:2]), saf.init(4, 3), np.arange(2), 2)
  term = lambda z: saf.loss(z, state, np.arange(4), 5)
  value, gradient = jax.value_and_grad(term)(jnp.asarray(z))
  expected = WEIGHT * TAU**2 * rules.divergences(z[:2], y[:2], TAU).sum() / 4
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  assert not np.any(gradient[2:])
  # A slot of another epoch isn't a target either.
  assert saf.loss(jnp.asarray(z), state, np.arange(4), 6) == 0


@pytest.mark.usefixtures('float64')
def test_eight_epochs_are_those_of_a_transcription():
  examples, rows = 8, 3  # two of the examples are left out of each epoch
  generator, batches = np.random.default_rng(0), []
  for epoch in range(8):
    order = generator.permutation(examples)
    for ids in (order[:rows], order[rows : 2 * rows]):
      batches += [(epoch, ids, 3 * generator.standard_normal((rows, 3)))]
  saf = BUILD(TAU, WEIGHT, **FLOAT64)

  @jax.jit
  def step(state, z, ids, epoch):
    found = jax.value_and_grad(saf.loss)(z, state, ids, epoch)
    return found, saf.update(z, state, ids, epoch)

  state = saf.init(examples, 3)
  for (epoch, ids, z), expected in zip(
    batches, rules.saf(batches, TAU, WEIGHT), strict=True
  ):
    (term, gradient), state = step(state, z, ids, epoch)
    np.testing.assert_allclose(term, expected[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-14)
  assert step._cache_size() == 1


def test_rows_that_only_fill_a_batch_up():
  saf = BUILD()
  state = filled(saf, 4, range(5))
  ids, is_example = np.array([3, 1, 0, 0]), np.arange(4) < 2
  z = auxiliary.assert_padding_adds_rows(
    lambda z, rows, shown: saf.loss(z, state, ids[rows], 5, shown)
  )
  after = saf.update(z, state, ids, 5, is_example)
  changed = jnp.any(after.logits != state.logits, axis=(1, 2))
  assert changed.tolist() == [False, True, False, True]


def test_a_weight_of_zero_is_the_base():
  auxiliary.assert_a_weight_of_zero_is_the_base('saf')


def test_what_a_step_costs():
  assert 1 < auxiliary.operations('saf') < 1.02


def test_numbers_may_be_traced():
  z, y = (jnp.asarray(logits_of(seed), 'float32') for seed in (1, 2))

  def term(temperature, weight):
    saf, ids = BUILD(temperature, weight), jnp.arange(4)
    return saf.loss(z, saf.update(y, saf.init(4, 3), ids, 2), ids, 5)

  wide = (np.asarray(x, np.float64) for x in (z, y))
  expected, _ = rules.term_and_gradient(*wide, TAU, WEIGHT)
  np.testing.assert_allclose(jax.jit(term)(TAU, WEIGHT), expected, rtol=1e-5)


def test_logits_that_are_not_finite_are_not_written():
  saf, ids = BUILD(), np.arange(4)
  state = filled(saf, 4, [2])
  z = jnp.asarray(logits_of(9), 'float32').at[1, 2].set(jnp.inf)
  for epoch, filled_then in ((5, [True] * 4), (6, [True, False, True, True])):
    after = saf.update(z, state, ids, epoch)
    np.testing.assert_array_equal(after.logits[1], state.logits[1])
    np.testing.assert_array_equal(after.logits[2, epoch % 3], z[2])
    assert after.filled[:, epoch % 3].tolist() == filled_then


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


def test_a_state_of_flax_carries_the_table():
  class State(TrainState):
    memory: optax_sam.SafState

  apply, params, batch = network()
  saf = BUILD()
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


def test_state_survives_a_checkpoint(tmp_path):
  saf = BUILD(table_dtype='bfloat16')
  auxiliary.assert_survives(filled(saf, 4, [1, 2]), saf.init(4, 3), tmp_path)


def test_a_table_may_be_of_half_the_size():
  wide = filled(BUILD(), 4, range(3))
  saf = BUILD(table_dtype='bfloat16')
  half = filled(saf, 4, range(3))
  assert half.logits.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.logits, wide.logits, rtol=2**-8)
  z = jnp.asarray(logits_of(9), 'float32')
  term, other = (saf.loss(z, one, np.arange(4), 5) for one in (half, wide))
  np.testing.assert_allclose(term, other, rtol=0.02)


@pytest.mark.parametrize(
  ('given', 'complaint'),
  [
    ({'temperature': 0}, 'temperature must be above 0'),
    ({'weight': -1}, 'weight must be at least 0'),
    ({'lag': 0}, 'lag must be at least 1'),
    ({'lag': 1.5}, 'lag must be a Python integer'),
    ({'start_epoch': -1}, 'start_epoch must be at least 0'),
    ({'table_dtype': 'int8'}, 'table_dtype must be None'),
  ],
)
def test_bad_settings_are_named(given, complaint):
  with pytest.raises(ValueError, match=complaint):
    BUILD(**given)


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
  saf = BUILD()
  given = {
    'logits': jnp.zeros((4, 3)),
    'state': saf.init(4, 3),
    'ids': np.arange(4),
    'epoch': 5,
  } | changes
  for function in (saf.loss, saf.update):
    with pytest.raises(ValueError, match=complaint):
      function(**given)


def test_ids_out_of_range_have_no_target_inside_a_program():
  saf = BUILD()
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
