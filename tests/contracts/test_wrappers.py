"""Methods inside Optax's wrappers, and their metrics."""

import jax
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training


def compiled(tx):
  """Returns the step of an optimizer in which Optax promotes dtypes."""
  step = jax.jit(training.training_step(tx))

  def run(*given):
    with jax.numpy_dtype_promotion('standard'):
      return step(*given)

  return run


@table.every_kind(table.in_chain)
def test_methods_work_before_wrapped_base_optimizers(name):
  accumulating = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
  method = table.ROWS[name].alone()
  tx = optax.chain(
    method, optax.apply_if_finite(accumulating.gradient_transformation(), 5)
  )
  step = compiled(tx)
  start, opt_state = training.start(tx)
  params, opt_state = step(start, opt_state, training.batch(0))
  comparisons.assert_equal(params, start)
  rejected, opt_state = step(params, opt_state, training.spoilt(7))
  comparisons.assert_equal(rejected, start)
  params, opt_state = step(params, opt_state, training.batch(1))

  # Two directions at the same parameters are averaged; the bad one between them
  # has no effect.
  update = training.direction(name)
  first, state = update(start, method.init(start), training.batch(0))
  _, state = update(start, state, training.spoilt(7))
  second, _ = update(start, state, training.batch(1))
  mean = jax.tree.map(lambda x, y: -0.1 * (x + y) / 2, first, second)
  comparisons.assert_close(params, optax.apply_updates(start, mean), 1e-5)
  assert int(optax_sam.metrics(opt_state)['step_count']) == 2


@table.every_kind()
def test_methods_work_inside_wrappers(name):
  row = table.ROWS[name]
  whole = row.whole(inject=True, base=lambda: optax.sgd(0.1))
  chain = optax.chain(optax.identity(), whole)
  accumulating = optax.MultiSteps(optax.apply_if_finite(chain, 5), 2)
  tx = accumulating.gradient_transformation()
  step = compiled(tx)
  state = training.train(step, training.start(tx), range(2))
  rejected = step(*step(*state, training.spoilt(7)), training.spoilt(7))
  comparisons.assert_equal(rejected[0], state[0])

  found = jax.jit(optax_sam.metrics)(rejected[1])
  params = training.params()
  _, alone = training.direction(name)(
    params, row.alone().init(params), training.batch()
  )
  expected = optax_sam.metrics(alone)
  assert found.keys() == expected.keys()
  assert {*optax_sam.SharpnessAwareInfo._fields, 'step_count'} <= found.keys()
  assert all(scalar.shape == () for scalar in found.values())
  assert int(found['step_count']) == 1
  assert bool(found['ascended']) == bool(expected['ascended'])


@table.every_method(lambda row: row.place in ('wraps', 'replaces'))
def test_metrics_without_a_method_raise(name):
  row, program = table.ROWS[name], training.program(name)
  start = training.start(program.tx)
  _, state = training.train(program.step, start, range(2))
  if row.radius is None:
    with pytest.raises(ValueError, match='opt_state must hold the state of'):
      optax_sam.metrics(state)
    return
  found = optax_sam.metrics(state)
  assert (int(found['step_count']), int(found['second_gradients'])) == (2, 2)
  assert float(found['ascent_norm']) > 0
  assert float(found['perturbed_loss']) > 0
