"""The state: arrays with names, abstract init, checkpoints."""

import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.contracts import comparisons, table, training


@table.every_row()
def test_the_state_consists_of_named_arrays(name):
  row = table.ROWS[name]
  state = row.own(row.whole().init(training.params()))
  assert type(state).__name__.endswith('State')
  assert type(state).__module__.startswith('optax_sam.')
  leaves = jax.tree.leaves(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  # Distinct buffers, because a buffer can't be donated twice.
  keys = [leaf for leaf in leaves if _is_key(leaf)]
  arrays = [leaf for leaf in leaves if not _is_key(leaf)]
  arrays += map(jax.random.key_data, keys)
  assert len({leaf.unsafe_buffer_pointer() for leaf in arrays}) == len(arrays)
  paths = [path for path, _ in jax.tree.leaves_with_path(state)]
  # Names with another meaning in Optax's tree search.
  taken = {'value', 'grad', 'learning_rate', 'hyperparams'}
  fields = {
    entry.name for path in paths for entry in path if hasattr(entry, 'name')
  }
  assert not fields & taken
  if row.place == 'chain':
    assert isinstance(state, optax_sam.SharpnessAwareState)
    assert int(optax.tree.get(state.info, 'second_gradients')) == 0


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@table.every_row()
def test_the_initial_state_is_at_least_float32_also_when_abstract(name):
  """The abstract state has the same types."""
  row = table.ROWS[name]
  wide = jnp.dtype('float32')
  chosen = jnp.dtype(row.settings().get('accumulator_dtype', wide))
  tx = row.alone(optax.constant_schedule(0.1))
  for dtype in ('bfloat16', 'float16'):
    params = training.params(dtype)
    state = tx.init(params)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(row.of_method(state))}
    floats = {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
    assert floats <= {wide, chosen}
  types, abstract = comparisons.types(state), jax.eval_shape(lambda: params)
  assert comparisons.types(jax.eval_shape(tx.init, params)) == types
  assert comparisons.types(tx.init(abstract)) == types


@table.every_kind()
def test_init_under_jit_gives_the_same_state(name):
  tx, params = table.ROWS[name].alone(), training.params()
  comparisons.assert_equal(jax.jit(tx.init)(params), tx.init(params))


def _is_like_params(leaf):
  return leaf.ndim > 0  # the parameters have no scalars


@table.every_kind(table.in_chain)
def test_tree_map_params_covers_state_like_the_parameters(name):
  for mask in (None, {'dense': True, 'norm': False}):
    tx = table.ROWS[name].whole(mask=mask)
    state = tx.init(training.params())
    marked = optax.tree_map_params(tx, lambda leaf: leaf[None], state)
    for before, after in zip(
      jax.tree.leaves(state), jax.tree.leaves(marked), strict=True
    ):
      marks = before[None] if _is_like_params(before) else before
      comparisons.assert_equal([after], [marks])


@table.every_kind()
def test_a_restored_checkpoint_continues_bit_identically(name, tmp_path):
  program = training.program(name)
  start = training.start(program.tx)
  saved = training.train(program.step, start, range(3))
  restored = comparisons.saved_and_restored(saved, tmp_path / 'state')
  comparisons.assert_equal(
    training.train(program.step, restored, range(3, 7)),
    training.train(program.step, saved, range(3, 7)),
  )
