"""Norms and scaling over trees of any dtype, size and magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optax_sam.trees import tree_math

FLOATS = st.floats(-1e3, 1e3, width=32).filter(
  lambda x: x == 0 or abs(x) > 1e-3
)
# Few structures, because each is compiled.
STRUCTURES = [
  [],
  [()],
  [(0,), (2, 0, 3)],
  [(3,), (), (1,), (4, 2)],
  [(2, 3, 4)],
]
TREES = st.sampled_from(STRUCTURES).flatmap(
  lambda shapes: st.tuples(
    *(hnp.arrays(np.float32, shape, elements=FLOATS) for shape in shapes)
  )
)


# Few structures, so that few functions are compiled.
norm, dot, scale_to = map(
  jax.jit, (tree_math.norm, tree_math.dot, tree_math.scale_to)
)


def flat(tree):
  leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  return np.concatenate([*leaves, np.zeros(0)])


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_norm_and_dot_equal_those_of_one_vector(arrays):
  tree = [jnp.asarray(x) for x in arrays]
  np.testing.assert_allclose(norm(tree), np.linalg.norm(flat(tree)), rtol=1e-5)
  np.testing.assert_allclose(
    dot(tree, tree), flat(tree) @ flat(tree), rtol=1e-5
  )


@settings(max_examples=40, deadline=None)
@given(TREES, st.floats(0, 10, width=32))
def test_scale_to_gives_the_requested_length(arrays, radius):
  tree = [jnp.asarray(x) for x in arrays]
  scaled = scale_to(radius, tree)
  expected = radius if np.any(flat(tree)) else 0
  np.testing.assert_allclose(
    np.linalg.norm(flat(scaled)), expected, rtol=1e-4, atol=1e-7
  )


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_norm_accumulates_in_float32(dtype):
  """In bfloat16 a sum of 4096 squares would stop growing at 256."""
  tree = {'x': jnp.full((4096,), 1.0, dtype)}
  assert norm(tree).dtype == jnp.float32
  assert float(norm(tree)) == 64.0


def test_float16_squares_do_not_underflow():
  tree = jnp.full((100,), 1e-4, jnp.float16)
  expected = np.linalg.norm(np.asarray(tree, np.float64))
  np.testing.assert_allclose(norm(tree), expected, rtol=1e-6)
  scaled = scale_to(0.05, tree)
  assert scaled.dtype == jnp.float16
  np.testing.assert_allclose(np.linalg.norm(flat(scaled)), 0.05, rtol=1e-3)


@pytest.mark.usefixtures('float64')
def test_mixed_dtypes_accumulate_in_the_widest():
  tree = {
    'half': jnp.full((2,), 2.0, jnp.bfloat16),
    'single': jnp.full((2,), 2.0, jnp.float32),
    'double': jnp.full((1,), 3.0, jnp.float64),
  }
  assert norm(tree).dtype == jnp.float64
  assert float(norm(tree)) == 5.0
  scaled = scale_to(1.0, tree)
  assert {k: v.dtype for k, v in scaled.items()} == {
    k: v.dtype for k, v in tree.items()
  }


@pytest.mark.parametrize('value', [0.0, np.inf, -np.inf, np.nan])
def test_unusable_norms_scale_to_zero(value):
  tree = {'bad': jnp.full((3,), value), 'good': jnp.zeros((2,))}
  scaled = scale_to(0.5, tree)
  np.testing.assert_array_equal(flat(scaled), np.zeros(5))


def test_empty_tree_and_none_leaves_have_norm_zero():
  assert float(norm({})) == 0
  assert scale_to(1.0, {'x': None}) == {'x': None}
  assert tree_math.accumulator_dtype({}) == jnp.float32


def test_rounding_is_negligible_but_a_difference_is_not():
  reference = jnp.float32(1.0)
  assert bool(tree_math.is_negligible(jnp.float32(5e-7), reference))
  assert not bool(tree_math.is_negligible(jnp.float32(5e-6), reference))
  assert bool(tree_math.is_negligible(jnp.float32(0), jnp.float32(0)))
