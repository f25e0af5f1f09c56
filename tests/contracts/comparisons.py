"""Comparisons of trees."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def assert_equal(left: Any, right: Any) -> None:
  """Raises unless two trees have equal structure, dtypes and bits."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for (path, x), y in zip(
    jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    where = jax.tree_util.keystr(path)
    assert x.dtype == y.dtype, where
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), where)


def saved_and_restored(tree: Any, path: pathlib.Path) -> Any:
  """Returns a tree from a checkpoint of it, after a comparison."""
  # Orbax promotes dtypes implicitly.
  with (
    jax.numpy_dtype_promotion('standard'),
    ocp.StandardCheckpointer() as checkpointer,
  ):
    checkpointer.save(path, tree)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    restored = checkpointer.restore(path, abstract)
  assert_equal(restored, tree)
  return restored


def are_equal(left: Any, right: Any) -> bool:
  """Whether two trees of equal structure are bit-identical."""
  pairs = jax.tree.map(np.array_equal, *map(without_keys, (left, right)))
  return all(jax.tree.leaves(pairs))


def assert_close(left: Any, right: Any, tolerance: float = 1e-6) -> None:
  """Raises unless two trees are nearly equal."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def without_keys(tree):
  """Returns a tree with typed keys replaced by their key data."""
  return jax.tree.map(
    lambda leaf: np.asarray(
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    tree,
  )


def types(tree: Any) -> Any:
  """Returns a tree with the dtype, shape and weakness of every leaf."""
  return jax.tree.map(
    lambda leaf: (leaf.dtype, leaf.shape, is_weak(leaf)), tree
  )


def is_weak(leaf: Any) -> bool:
  """Whether an array is weakly typed; keys never are."""
  return getattr(leaf, 'weak_type', False)


def all_finite(tree: Any) -> bool:
  """Whether all numbers of a tree are finite; keys are ignored."""
  return all(
    bool(jnp.all(jnp.isfinite(leaf)))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  )
