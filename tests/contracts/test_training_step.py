"""One training step, written once, serves every method under jit."""

import jax
import optax

from tests.contracts import table


@table.every_row()
def test_compiles_once(name):
  tx = optax.chain(table.ROWS[name](), table.base())
  traces = []

  @jax.jit
  def step(*arguments):
    traces.append(name)
    return table.training_step(tx)(*arguments)

  params = table.params()
  state = (params, tx.init(params))
  for t in range(5):
    state = step(*state, table.batch(t))
  assert len(traces) == 1
  assert step._cache_size() == 1
  assert table.all_finite(state)


@table.every_row()
def test_equals_the_step_outside_of_jit(name):
  tx, step = table.compiled(name)
  params = table.params()
  state = (params, tx.init(params))
  inside = table.train(step, state, range(2))
  outside = table.train(table.training_step(tx), state, range(2))
  table.assert_close(
    table.without_keys(inside), table.without_keys(outside), 1e-5
  )


@table.every_row()
def test_buffers_can_be_donated(name):
  tx, step = table.compiled(name)
  # Kept where unused, so that every single buffer is donated.
  donating = table.jit(
    table.training_step(tx), donate_argnums=(0, 1), keep_unused=True
  )
  params = table.params()
  kept = (params, tx.init(params))
  donated = jax.tree.map(lambda leaf: leaf.copy(), kept)
  for t in range(3):
    kept = step(*kept, table.batch(t))
    given, donated = donated, donating(*donated, table.batch(t))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  table.assert_equal(kept, donated)


def test_the_key_of_the_caller_survives_donation():
  tx = table.METHODS['ss_sam'](key=jax.random.key(1))
  for _ in range(2):
    jax.jit(lambda state: state, donate_argnums=0)(tx.init(table.params()))


@table.every_row()
def test_init_gives_every_leaf_a_buffer_of_its_own(name):
  tx, _ = table.compiled(name)
  leaves = jax.tree.leaves(tx.init(table.params()))
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
  tx, step = table.compiled(name)
  params = table.params()

  @jax.jit
  def scaled_step(params, opt_state, batch):
    scaled = jax.grad(lambda p: 1024 * table.loss(p, batch))(params)
    grads = jax.tree.map(lambda g: g / 1024, scaled)
    updates, opt_state = tx.update(
      grads, opt_state, params, value_fn=lambda p: table.loss(p, batch)
    )
    return optax.apply_updates(params, updates), opt_state

  state = (params, tx.init(params))
  plain = table.train(step, state, range(3))
  scaled = table.train(scaled_step, state, range(3))
  # A direction with length 1 that is kept has the rounding of what is short.
  table.assert_close(
    table.without_keys(plain), table.without_keys(scaled), 1e-4
  )
