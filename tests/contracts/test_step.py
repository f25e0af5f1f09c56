"""The same training step works for every method."""

import jax

from tests.contracts import comparisons, table, training


@table.every_row()
def test_all_steps_compile_once_and_preserve_types(name):
  program = training.program(name)
  known = len(program.traces), program.donating._cache_size()
  start = training.start(program.tx)
  state = training.train(program.step, start, range(5))
  # Other contracts may have called it before, also from a checkpoint.
  assert len(program.traces) == max(known[0], 1)
  assert program.donating._cache_size() == max(known[1], 1)
  assert comparisons.types(state) == comparisons.types(start)
  assert comparisons.all_finite(state)


@table.every_row()
def test_buffers_can_be_donated(name):
  program = training.program(name)
  state, batch = training.start(program.tx), training.batch()
  for _ in range(3):
    given, state = state, program.donating(*state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  # Arrays of the caller are not donated.
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


@table.every_kind(lambda row: row.name in ('sam', 'everything', 'b_sam'))
def test_a_donating_step_equals_the_step(name):
  tx, program = table.ROWS[name].whole(inject=True), training.program(name)
  plain = training.jit(training.training_step(tx))
  state = training.start(tx)
  comparisons.assert_equal(
    training.train(program.step, state, range(3)),
    training.train(plain, state, range(3)),
  )


def test_the_key_of_the_caller_survives_donation():
  key = jax.random.key(1)
  tx = table.METHODS['ss_sam'].alone(key=key)
  for _ in range(2):
    jax.jit(lambda state: state, donate_argnums=0)(tx.init(training.params()))
  assert not key.is_deleted()


@table.every_kind()
def test_a_step_outside_of_jit_equals_the_step(name):
  program = training.program(name)
  state = training.start(program.tx)
  inside = training.train(program.step, state, range(2))
  outside = training.train(training.training_step(program.tx), state, range(2))
  assert comparisons.types(inside) == comparisons.types(outside)
  # A reused direction is the normalized difference of two close gradients,
  # which amplifies their rounding a hundred times.
  comparisons.assert_close(
    comparisons.without_keys(inside), comparisons.without_keys(outside), 5e-5
  )
