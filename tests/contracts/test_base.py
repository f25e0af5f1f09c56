"""Settings with which methods equal the base optimizer; bad gradients."""

import itertools

import jax
import jax.numpy as jnp

import optax_sam
from tests.contracts import comparisons, table, training


@table.every_row(
  lambda row: row.place != 'replaces' and row.name not in table.NEVER_THE_BASE
)
def test_rho_0_is_the_base_optimizer_bit_for_bit(name):
  row = table.ROWS[name]
  base = training.of_base()
  theirs = training.train(base.step, training.start(base.tx), range(6))
  # The radius is an argument, not a constant, so that the compiler can't remove
  # the perturbation.
  program = training.neutral(name)
  params, state = training.start(program.tx)
  if row.radius:
    row.part(state).hyperparams[row.radius] = jnp.float32(0)
  params, state = training.train(program.step, (params, state), range(6))
  if row.place != 'after':
    assert int(optax_sam.metrics(state)['second_gradients']) > 0
  is_same = (
    comparisons.assert_close
    if name in table.ROUNDS
    else comparisons.assert_equal
  )
  is_same((params, row.of_base(state)), theirs)


@table.every_kind(table.in_chain)
def test_a_zero_gradient_is_the_base_step(name):
  row, program = table.ROWS[name], training.program(name)
  flat = training.batch()
  flat['weight'] = jnp.zeros_like(flat['weight'])
  for warm_up in (0, 4):
    start = training.start(program.tx)
    params, state = training.train(program.step, start, range(warm_up))
    ours = program.step(params, state, flat)
    theirs = training.of_base().step(params, row.of_base(state), flat)
    comparisons.assert_equal((ours[0], row.of_base(ours[1])), theirs)
    assert comparisons.all_finite(ours)


@table.every_kind()
def test_a_gradient_that_is_not_finite_does_not_change_the_state(name):
  row, program = table.ROWS[name], training.program(name)
  for warm_up, bad in itertools.product((0, 4), (jnp.inf, -jnp.inf, jnp.nan)):
    start = training.start(program.tx)
    params, state = training.train(program.step, start, range(warm_up))
    spoilt = training.spoilt(warm_up, bad)
    bad_params, after = program.step(params, state, spoilt)
    assert not comparisons.all_finite(bad_params)
    comparisons.assert_equal(row.own(after), row.own(state))

    # Training continues as if the base optimizer had rejected the step.
    if row.place == 'chain':
      accepted = params, (after[0], *state[1:])
      later = training.train(program.step, accepted, range(5, 10))
      assert comparisons.all_finite(later)


@table.every_kind(
  lambda row: row.place == 'chain' and row.method.needs == 'value_fn'
)
def test_an_infinite_entry_of_the_unperturbed_gradient_does_not_enter_the_state(
  name,
):
  """The perturbed gradient is finite, as with loss scaling."""
  tx, params = table.ROWS[name].alone(), training.params()

  @jax.jit
  def update(grads, state):
    grad_fn = lambda p: jax.grad(training.loss)(p, training.batch())
    return tx.update(grads, state, params, grad_fn=grad_fn)[1]

  good = training.gradient(params, training.batch())
  double = jax.tree.map(lambda leaf: 2 * leaf, good)
  bad = {**good, 'norm': {'scale': good['norm']['scale'].at[0].set(jnp.inf)}}
  start = tx.init(params)
  for before in (start, update(good, start)):
    by_good, by_double, by_bad = (
      _statistics(update(grads, before)) for grads in (good, double, bad)
    )
    is_read = not comparisons.are_equal(by_good, by_double)
    is_left = comparisons.are_equal(by_bad, _statistics(before))
    assert is_left or (not is_read and comparisons.are_equal(by_bad, by_good))


def _statistics(state):
  """Returns the state of a method without counters and metrics."""
  return [
    leaf
    for path, leaf in jax.tree.leaves_with_path(state)
    if not (where := jax.tree_util.keystr(path)).endswith('step_count')
    and '.info' not in where
  ]
