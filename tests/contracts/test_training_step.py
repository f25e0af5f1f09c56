"""One training step, written once, serves every method under jit."""

import jax
import optax

from tests.contracts import comparisons, table, training


@table.every_row()
def test_compiles_once(name):
  tx = optax.chain(table.ROWS[name](), training.base())
  traces = []

  @jax.jit
  def step(*arguments):
    traces.append(name)
    return training.training_step(tx)(*arguments)

  params = training.params()
  state = (params, tx.init(params))
  for t in range(5):
    state = step(*state, training.batch(t))
  assert len(traces) == 1
  assert step._cache_size() == 1
  assert comparisons.all_finite(state)


@table.every_row()
def test_equals_the_step_outside_of_jit(name):
  tx, step = training.compiled(name)
  params = training.params()
  state = (params, tx.init(params))
  inside = training.train(step, state, range(2))
  outside = training.train(training.training_step(tx), state, range(2))
  # A kept direction is the difference of two close gradients, of norm 1: it
  # shows their rounding a hundred times larger.
  comparisons.assert_close(
    comparisons.without_keys(inside), comparisons.without_keys(outside), 5e-5
  )


@table.every_row()
def test_buffers_can_be_donated(name):
  tx, step = training.compiled(name)
  # Kept where unused, so that every single buffer is donated.
  donating = training.jit(
    training.training_step(tx), donate_argnums=(0, 1), keep_unused=True
  )
  params = training.params()
  kept = (params, tx.init(params))
  donated = jax.tree.map(lambda leaf: leaf.copy(), kept)
  for t in range(3):
    kept = step(*kept, training.batch(t))
    given, donated = donated, donating(*donated, training.batch(t))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  comparisons.assert_equal(kept, donated)


def test_the_key_of_the_caller_survives_donation():
  tx = table.METHODS['ss_sam'](key=jax.random.key(1))
  for _ in range(2):
    jax.jit(lambda state: state, donate_argnums=0)(tx.init(training.params()))


@table.every_row()
def test_init_gives_every_leaf_a_buffer_of_its_own(name):
  tx, _ = training.compiled(name)
  leaves = jax.tree.leaves(tx.init(training.params()))
  arrays = [
    jax.random.key_data(leaf)
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else leaf
    for leaf in leaves
  ]
  assert len({leaf.unsafe_buffer_pointer() for leaf in arrays}) == len(arrays)


@table.every_row(needs_examples=False)
def test_the_clean_gradient_may_come_from_elsewhere(name):
  # A loss scale, undone before the method sees the gradient.
  tx, step = training.compiled(name)
  params = training.params()

  @jax.jit
  def scaled_step(params, opt_state, batch):
    scaled = jax.grad(lambda p: 1024 * training.loss(p, batch))(params)
    grads = jax.tree.map(lambda g: g / 1024, scaled)
    updates, opt_state = tx.update(
      grads, opt_state, params, value_fn=lambda p: training.loss(p, batch)
    )
    return optax.apply_updates(params, updates), opt_state

  state = (params, tx.init(params))
  plain = training.train(step, state, range(3))
  scaled = training.train(scaled_step, state, range(3))
  # A direction with length 1 that is kept has the rounding of what is short.
  comparisons.assert_close(
    comparisons.without_keys(plain), comparisons.without_keys(scaled), 1e-4
  )
