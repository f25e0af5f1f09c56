"""Contracts of what stands behind the base optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

STRICT = False  # Orbax and Optax promote dtypes implicitly

_BUILD = {
  'anti_pgd': lambda: optax_sam.anti_pgd(0.1, key=1),
  'swa': lambda: optax_sam.swa(2, every=2),
}
every_name = pytest.mark.parametrize('name', _BUILD)


def test_none_is_left_out():
  assert set(_BUILD) == set(table.LAST)


def chain(name):
  return optax.chain(optax_sam.sam(), training.base(), _BUILD[name]())


def shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@every_name
def test_one_program_whose_buffers_are_donated(name):
  tx = chain(name)
  step = training.jit(
    training.training_step(tx), donate_argnums=(0, 1), keep_unused=True
  )
  kept = training.jit(training.training_step(tx))
  state, expected = training.start(tx), training.start(tx)
  for t in range(5):
    given, state = state, step(*state, training.batch(t))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    expected = kept(*expected, training.batch(t))
  comparisons.assert_equal(state, expected)
  assert step._cache_size() == 1


@every_name
def test_init_without_numbers(name):
  tx, params = _BUILD[name](), training.params()
  state = tx.init(params)
  abstract = jax.eval_shape(lambda: params)
  assert shapes(tx.init(abstract)) == shapes(state)
  comparisons.assert_equal(jax.jit(tx.init)(params), state)


@every_name
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_types_are_stable(name, dtype):
  with jax.enable_x64(dtype == 'float64'):
    tx, params = _BUILD[name](), training.params(dtype)
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert shapes(updates) == shapes(params)
    assert shapes(after) == shapes(state)
    wide = 'float64' if dtype == 'float64' else 'float32'
    assert {
      leaf.dtype
      for leaf in jax.tree.leaves(state)
      if jnp.issubdtype(leaf.dtype, jnp.floating)
    } == {np.dtype(wide)}


@every_name
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
  tx = chain(name)
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
