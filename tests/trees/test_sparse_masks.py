"""Exact masks: the given number of entries, equal to those of a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optax_sam.trees import sparse_masks
from tests import compiling

SCORES = st.one_of(
  st.sampled_from([0.0, 0.5, 1.0, 2.0**-120, np.inf]),
  st.floats(0, 2.0**100, width=32, allow_subnormal=False),
)
# Few structures, because each is compiled.
STRUCTURES = [
  [()],
  [(0,)],
  [(3,), (2, 2), (), (1,)],
  [(2, 0, 3), (2, 3, 2), (4, 1)],
]
TREES = st.sampled_from(STRUCTURES).flatmap(
  lambda shapes: st.tuples(
    *(hnp.arrays(np.float32, shape, elements=SCORES) for shape in shapes)
  )
)


largest = jax.jit(sparse_masks.largest)


@jax.jit
def rank_bits(tree):
  return jax.tree.map(sparse_masks.rank_bits, tree)


def joined(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@settings(max_examples=60, deadline=None)
@given(TREES, st.data())
def test_largest_equals_top_k_of_all_leaves_joined(arrays, data):
  flat = joined(arrays)
  k = data.draw(st.integers(0, flat.size))
  found = largest(rank_bits([jnp.asarray(x) for x in arrays]), k)
  expected = np.zeros(flat.size, bool)
  expected[np.argsort(-flat, kind='stable')[:k]] = True
  np.testing.assert_array_equal(joined(found), expected)


# All kinds of floats; subnormal and negative ones count as 0.
SMALL = [0.0, -0.0, 1e-45, -1e-39, 2.0**-126, 1e-30]
ODD = np.array([*SMALL, 1, 2, -1, np.inf, -np.inf, np.nan, -np.nan], np.float32)


def in_order(scores):
  """Returns the selectable positions in the order of a stable sort."""
  usable = np.where(scores >= np.finfo(np.float32).tiny, scores, 0)
  order = np.argsort(-usable, kind='stable')
  return order[~np.isnan(scores[order])]


@pytest.mark.parametrize('values', ['odd', 'equal', 'few', 'distinct'])
def test_largest_of_scores_is_that_of_a_stable_sort(values):
  """Leaves long enough for vectorized and multithreaded counting."""
  generator = np.random.default_rng(0)
  shapes = [(60_001,), (3, 3, 7, 50), (), (0, 3), (200, 11)]
  flat = {
    'odd': lambda n: generator.choice(ODD, n),
    'equal': lambda n: np.ones(n, np.float32),
    'few': lambda n: generator.integers(0, 4, n).astype(np.float32),
    'distinct': lambda n: generator.permutation(n).astype(np.float32),
  }[values](sum(int(np.prod(shape)) for shape in shapes))
  ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
  scores = [
    jnp.asarray(part.reshape(shape))
    for part, shape in zip(np.split(flat, ends), shapes, strict=True)
  ]
  order = in_order(flat)
  for fraction in (0.0, 0.1, 0.5, 0.9, 1.0):
    k = round(fraction * order.size)
    expected = np.zeros(flat.size, bool)
    expected[order[:k]] = True
    for found in (largest(scores, k), largest(rank_bits(scores), k)):
      np.testing.assert_array_equal(joined(found), expected)


def test_exactly_k_entries_of_the_largest_rank_are_selected():
  ranks = jnp.array([2**31 - 1, 5, 2**31 - 1], jnp.int32)
  for k, expected in enumerate([[], [0], [0, 2], [0, 1, 2]]):
    assert np.flatnonzero(largest(ranks, k)).tolist() == expected


@pytest.mark.parametrize('to_choose_from', ['scores', 'ranks'])
def test_no_temporary_array_has_the_size_of_a_leaf(to_choose_from):
  """Inputs and outputs do; no further array has even a bool per entry."""
  tree = {'a': jnp.ones((500, 1000)), 'b': jnp.ones((500_000,))}
  given = tree if to_choose_from == 'scores' else rank_bits(tree)
  compiled = largest.lower(given, 10).compile(**compiling.READ_AS_USERS)
  assert compiled.memory_analysis().temp_size_in_bytes < 10_000


@settings(max_examples=60, deadline=None)
@given(
  st.integers(0, 1000),
  st.one_of(
    st.integers(0, 10**9), st.integers(0, 10**6).map(lambda n: 1000 * n)
  ),
)
def test_the_number_of_entries_is_computed_in_decimals(thousandths, size):
  """In binary, 1 - 0.9 is slightly less than 0.1."""
  expected = (1000 - thousandths) * size // 1000
  assert sparse_masks.num_kept(thousandths / 1000, size) == expected


drop_and_grow = jax.jit(sparse_masks.drop_and_grow)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 7, 30]), st.data())
def test_drop_and_grow_preserves_the_count(size, data):
  active = data.draw(st.integers(0, size))
  moved = data.draw(st.integers(0, min(active, size - active)))
  generator = np.random.default_rng(data.draw(st.integers(0, 99)))
  mask = generator.permutation(np.arange(size) < active)
  drop = generator.integers(0, 4, size).astype(np.int32)
  grow = generator.integers(0, 4, size).astype(np.int32)
  found = np.asarray(drop_and_grow(mask, drop, grow, moved))
  assert found.sum() == active
  dropped, grown = mask & ~found, found & ~mask
  assert dropped.sum() == grown.sum() == moved
  if moved > 0:
    assert drop[dropped].max() <= drop[mask & found].min(initial=99)
    assert grow[grown].min() >= grow[~mask & ~found].max(initial=-1)


def test_n_of_m_breaks_ties_and_skips_leaves_without_groups():
  tied = np.asarray(sparse_masks.n_of_m(jnp.zeros((4, 2)), 2, 4))
  np.testing.assert_array_equal(tied[:, 0], [True, True, False, False])
  assert np.asarray(sparse_masks.n_of_m(jnp.zeros((4,)), 2, 4)).all()
  assert np.asarray(sparse_masks.n_of_m(jnp.zeros((6, 2)), 2, 4)).all()


@pytest.mark.parametrize(
  'shape', [(8, 3), (2, 4, 3), (2, 2, 3), (3, 4, 0), (0, 4, 2), (4, 0, 2)]
)
def test_n_of_m_groups_the_inputs_as_if_joined(shape):
  """Groups within the last input axis, or over several axes."""
  score = np.random.default_rng(0).integers(0, 5, shape).astype(np.float32)
  found = np.asarray(sparse_masks.n_of_m(jnp.asarray(score), 3, 4))
  units = score.reshape(int(np.prod(shape[:-1])), shape[-1]).T
  expected = np.zeros(units.shape, bool)
  for unit, chosen in zip(units, expected, strict=True):
    for start in range(0, len(unit), 4):
      order = np.argsort(-unit[start : start + 4], kind='stable')
      chosen[start + order[:3]] = True
  np.testing.assert_array_equal(found, expected.T.reshape(shape))


def test_more_entries_than_int32_raise():
  leaf = jax.ShapeDtypeStruct((2**16, 2**14), jnp.int32)
  jax.eval_shape(sparse_masks.largest, {'a': leaf}, 5)
  with pytest.raises(ValueError, match=r'at most 2147483647 .* got 2147483648'):
    jax.eval_shape(sparse_masks.largest, {'a': leaf, 'b': leaf}, 5)


@pytest.mark.parametrize('pattern', ['2', '0:4', '5:4', 'a:b', '', 4])
def test_invalid_patterns_raise(pattern):
  with pytest.raises(ValueError, match='pattern must be'):
    sparse_masks.parse_pattern(pattern)


def test_no_leaf_is_sorted_or_joined():
  tree = {'a': jnp.zeros((64, 8)), 'b': jnp.zeros((32,))}
  lowered = largest.lower(rank_bits(tree), 100)
  text = lowered.compile(**compiling.READ_AS_USERS).as_text()
  for operation in (' sort(', ' concatenate(', ' reshape('):
    assert operation not in text
