"""SAF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests import compiling
from tests.oracles import saf as rules
from tests.oracles.saf import logits_of

BUILD = optax_sam.saf_loss


def filled(saf, examples, epochs, classes=3):
  """Returns the state after epochs with distinct logits."""
  state, ids = saf.init(examples, classes), np.arange(examples)
  for epoch in epochs:
    state = saf.update(
      jnp.asarray(logits_of(epoch, examples)), state, ids, epoch
    )
  return state


@pytest.mark.usefixtures('float64')
def test_eight_epochs_equal_those_of_a_transcription():
  examples, rows = 8, 3  # each epoch leaves out two examples
  generator, batches = np.random.default_rng(0), []
  for epoch in range(8):
    order = generator.permutation(examples)
    for ids in (order[:rows], order[rows : 2 * rows]):
      batches += [(epoch, ids, 3 * generator.standard_normal((rows, 3)))]
  saf = BUILD(2.0, 0.7, table_dtype='float64')

  @jax.jit
  def step(state, z, ids, epoch):
    found = jax.value_and_grad(saf.loss)(z, state, ids, epoch)
    return found, saf.update(z, state, ids, epoch)

  state = saf.init(examples, 3)
  for (epoch, ids, z), expected in zip(
    batches, rules.saf(batches, 2.0, 0.7), strict=True
  ):
    (term, gradient), state = step(state, z, ids, epoch)
    np.testing.assert_allclose(term, expected[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-14)
  assert step._cache_size() == 1


def test_padding_rows_are_ignored_also_with_the_id_of_an_example():
  saf = BUILD()
  state = filled(saf, 4, range(5))
  ids, is_example = np.array([3, 0, 0, 0]), np.arange(4) < 2
  z = jnp.asarray(logits_of(9), 'float32')
  gradient = jax.value_and_grad(saf.loss)
  padded = z.at[2:].set(jnp.nan)
  value, change = gradient(padded, state, ids, 5, is_example)
  part, part_change = gradient(z[:2], state, ids[:2], 5)
  np.testing.assert_allclose(value, part / 2, rtol=1e-6)
  np.testing.assert_allclose(change[:2], part_change / 2, rtol=1e-5)
  assert not jnp.any(change[2:])
  after = saf.update(z, state, ids, 5, is_example)
  changed = jnp.any(after.logits != state.logits, axis=(1, 2))
  assert changed.tolist() == [True, False, False, True]


def test_a_weight_of_zero_is_the_base():
  saf = BUILD(weight=0.0)
  state, z = filled(saf, 4, range(5)), jnp.asarray(logits_of(9), 'float32')
  found = jax.value_and_grad(saf.loss)(z, state, np.arange(4), 5)
  assert not any(map(jnp.any, found))


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
  saf = BUILD()

  def step(state, z, ids, epoch):
    found = jax.value_and_grad(saf.loss)(z, state, ids, epoch)
    return saf.update(z, state, ids, epoch), found

  state = jax.eval_shape(lambda: saf.init(10**5, 10))
  program = jax.jit(step, donate_argnums=0, **compiling.READ_AS_USERS)
  lowered = program.lower(state, jnp.ones((512, 10)), jnp.arange(512), 5)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < 2**20 < state.logits.size


def test_a_table_in_half_precision_has_half_the_size():
  wide = filled(BUILD(), 4, range(3))
  saf = BUILD(table_dtype='bfloat16')
  half = filled(saf, 4, range(3))
  assert half.logits.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.logits, wide.logits, rtol=2**-8)
  z = jnp.asarray(logits_of(9), 'float32')
  term, other = (saf.loss(z, one, np.arange(4), 5) for one in (half, wide))
  np.testing.assert_allclose(term, other, rtol=0.02)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'temperature': 0}, 'temperature must be above 0'),
    ({'weight': -1}, 'weight must be at least 0'),
    ({'lag': 0}, 'lag must be at least 1'),
    ({'lag': 1.5}, 'lag must be a Python integer'),
    ({'start_epoch': -1}, 'start_epoch must be at least 0'),
    ({'table_dtype': 'int8'}, 'table_dtype must be None'),
  ],
)
def test_invalid_settings_raise(given, message):
  with pytest.raises(ValueError, match=message):
    BUILD(**given)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'logits': jnp.zeros(4)}, r'shape \(B, classes\), got float32 of shape'),
    ({'logits': jnp.zeros((4, 3), int)}, 'logits must be floating-point'),
    ({'logits': jnp.zeros((4, 2))}, r'write init\(num_examples, 2\)'),
    ({'ids': np.array([0, 1, 2, 4])}, 'ids must be from 0 to 3, .* got 0 to 4'),
    ({'ids': np.array([0, 1, -1, 2])}, 'is_example to False and ids'),
    ({'ids': np.arange(3)}, r'ids must be integers of shape \(4,\)'),
    ({'ids': np.arange(4.0)}, 'ids must be integers of .* got float'),
    ({'epoch': 5.0}, r'epoch must be integers of shape \(\), got float'),
    ({'epoch': -1}, 'epoch must be at least 0'),
  ],
)
def test_invalid_batches_raise(changes, message):
  saf = BUILD()
  given = {
    'logits': jnp.zeros((4, 3)),
    'state': saf.init(4, 3),
    'ids': np.arange(4),
    'epoch': 5,
  } | changes
  for function in (saf.loss, saf.update):
    with pytest.raises(ValueError, match=message):
      function(**given)


def test_ids_out_of_range_have_no_target_under_jit():
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
