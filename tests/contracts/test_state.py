"""The state: abstract init, parts like the parameters, checkpoints."""

import jax
import optax
import orbax.checkpoint as ocp
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

# Orbax and Optax promote dtypes implicitly.
STRICT = False


def _shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@table.every_row()
def test_init_without_numbers(name):
  tx, params = table.ROWS[name](optax.constant_schedule(0.1)), training.params()
  state = tx.init(params)
  abstract_params = jax.eval_shape(lambda: params)
  assert _shapes(jax.eval_shape(tx.init, params)) == _shapes(state)
  assert _shapes(tx.init(abstract_params)) == _shapes(state)
  assert _shapes(jax.jit(tx.init)(params)) == _shapes(state)
  comparisons.assert_equal(jax.jit(tx.init)(params), state)


def test_a_typed_key_under_jit():
  """The key is a constant of the program, and the caller's own stays."""
  key, params = jax.random.key(3), training.params()
  tx = optax_sam.ss_sam(key=key)
  state = jax.jit(tx.init)(params)
  assert _shapes(jax.eval_shape(tx.init, params)) == _shapes(state)
  comparisons.assert_equal(state, tx.init(params))
  jax.jit(lambda state: state, donate_argnums=0)(state)
  assert not key.is_deleted()


@table.every_row()
def test_the_state_consists_of_arrays_with_names(name):
  state = table.ROWS[name]().init(training.params())
  assert isinstance(state, optax_sam.SharpnessAwareState)
  leaves = jax.tree.leaves(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  # Names that Optax's own tree search takes for something else.
  taken = {'value', 'grad', 'learning_rate', 'hyperparams'}
  fields = {
    field
    for path, _ in jax.tree.leaves_with_path(state)
    for field in _names(path)
  }
  assert not fields & taken
  assert int(optax.tree.get(state.info, 'second_gradients')) == 0


def _names(path):
  return [entry.name for entry in path if hasattr(entry, 'name')]


@table.every_row()
@pytest.mark.parametrize('mask', [None, {'dense': True, 'norm': False}])
def test_map_over_the_parts_that_are_like_the_parameters(name, mask):
  row = table.ROWS[name]
  masked = {'mask': mask} if row.perturbs else {}
  tx = optax.chain(row(**masked), training.base())
  state = tx.init(training.params())
  marked = optax.tree_map_params(tx, lambda leaf: leaf + leaf.size, state)
  for (path, before), after in zip(
    jax.tree.leaves_with_path(state), jax.tree.leaves(marked), strict=True
  ):
    is_part = {'ema', 'mask', 'direction', 'trace'} & set(_names(path))
    expected = before + before.size if is_part else before
    comparisons.assert_equal([after], [expected])


@pytest.mark.parametrize(
  'name',
  [
    'friendly_sam',
    'look_sam',
    'look_layer_sam',
    'ae_look_sam',
    'sparse_sam_fisher',
    'sparse_sam_dynamic',
    'momentum_sam',
    'async_sam',
    'eigen_sam',
  ],
)
def test_shardings_of_the_parameters_fit_the_state(name):
  tx, params = table.ROWS[name](), training.params()
  specs = jax.tree.map(lambda leaf: f'{leaf.shape}', params)
  found = optax.tree_map_params(
    tx,
    lambda _, spec: spec,
    tx.init(params),
    specs,
    transform_non_params=lambda _: None,
  )
  assert jax.tree.leaves(found) == jax.tree.leaves(specs)


@table.every_row()
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
  changes = {'key': jax.random.key(7)} if 'key' in _arguments(name) else {}
  tx = optax.chain(table.ROWS[name](**changes), training.base())
  step = training.compiled(name)[1]
  if changes:
    step = training.jit(training.training_step(tx))
  saved = training.train(step, training.start(tx), range(3))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', saved)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
    restored = checkpointer.restore(tmp_path / 'state', abstract)
  comparisons.assert_equal(restored, saved)
  comparisons.assert_equal(
    training.train(step, restored, range(3, 7)),
    training.train(step, saved, range(3, 7)),
  )


def _arguments(name):
  return table.ROWS[name].arguments
