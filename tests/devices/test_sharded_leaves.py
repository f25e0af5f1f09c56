"""Exact masks of leaves that are sharded over eight devices, under jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_sam
from optax_sam import catalog
from tests.devices import collectives, programs
from tests.oracles.problems import NETWORK

DEVICES = 8
# Sharded leaves and a replicated number.
SPLIT = {
  'embedding': ('data', 'model'),
  'kernel': (None, 'model', 'data'),
  'bias': ('model',),
  'scale': (),
}
SHAPES = {
  'embedding': (64, 10),
  'kernel': (3, 32, 8),
  'bias': (40,),
  'scale': (),
}
EXAMPLES = 32
SPARSE = {
  'fisher': functools.partial(optax_sam.sparse_sam_fisher, refresh_every=1),
  'fisher_n_of_m': functools.partial(
    optax_sam.sparse_sam_fisher, refresh_every=1, pattern='2:4'
  ),
  'dynamic': functools.partial(
    optax_sam.sparse_sam_dynamic, refresh_every=1, total_steps=9, key=0
  ),
  'dynamic_by_size': lambda: optax_sam.sharpness_aware(
    optax_sam.perturbations.keep_dynamic(
      refresh_every=1, total_steps=9, key=0, drop='weight', growth='gradient'
    )
  ),
}


def shardings():
  mesh = programs.mesh(('data', 'model'))
  return {k: NamedSharding(mesh, PartitionSpec(*x)) for k, x in SPLIT.items()}


def powers_of_two(step=0):
  """Powers of two: many entries are equal, and products are exact."""
  index = {name: np.arange(np.prod(shape)) for name, shape in SHAPES.items()}
  return {
    name: jnp.asarray(
      (-1.0) ** (i % 3) * 2.0 ** ((i * 89 + 5 * step) % 7), jnp.float32
    ).reshape(SHAPES[name])
    for name, i in index.items()
  }


def elementwise_losses(params, batch):
  """Needs no complete leaf, unlike a matrix product."""
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)]
  return 0.5 * batch * sum(squares)


def elementwise_step(tx):
  batch = jnp.arange(float(EXAMPLES)) % 2.0 + 0.5

  def step(params, state):
    grads = jax.grad(lambda p: jnp.mean(elementwise_losses(p, batch)))(params)
    return tx.update(
      grads,
      state,
      params,
      per_example_value_fn=elementwise_losses,
      batch=batch,
    )

  return jax.jit(step)


def assert_no_leaf_travels(compiled):
  """Raises unless collectives have only counts, losses and sums."""
  found = collectives.sizes(compiled.as_text())
  assert found
  for name, size in found:
    assert name in {'all-reduce', 'all-gather'}
    assert size <= (DEVICES if name == 'all-gather' else EXAMPLES)


def assert_same(found, expected, wanted):
  """Raises unless entries are bit-identical and have the expected sharding."""
  for name, sharding in wanted.items():
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    leaf = found[name]
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name


def masks_of(state):
  return optax.tree_utils.tree_get(state, 'mask')


@pytest.mark.parametrize('name', SPARSE)
def test_sparse_masks_of_sharded_leaves_gather_no_leaf(name):
  """Collectives have only sums and per-example losses."""
  wanted, tx = shardings(), SPARSE[name]()
  step = elementwise_step(tx)
  params = powers_of_two()
  expected = tx.init(params)
  state = optax.tree_utils.tree_map_params(tx, jax.device_put, expected, wanted)
  compiled = step.lower(jax.device_put(params, wanted), state).compile()
  assert_no_leaf_travels(compiled)
  for t in range(3):
    params = powers_of_two(t)
    _, expected = step(params, expected)
    _, state = compiled(jax.device_put(params, wanted), state)
    assert_same(masks_of(state), masks_of(expected), wanted)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.xdist_group(case.family))
    for name, case in programs.CASES.items()
    # One of them has batches of another problem in its state.
    if name in catalog.METHODS and not case.takes('batch_like')
  ],
)
def test_no_method_gathers_a_leaf(name):
  """Norms and inner products of sharded leaves are sums of partial sums."""
  wanted = shardings()
  tx = programs.CASES[name].optimizer(NETWORK.base(), None)
  params = jax.device_put(powers_of_two(), wanted)
  step = elementwise_step(tx)
  compiled = step.lower(params, tx.init(params)).compile()
  assert_no_leaf_travels(compiled)


@pytest.mark.parametrize('name', ['dynamic', 'fisher'])
def test_the_first_mask_is_sharded_like_the_parameters(name):
  wanted = shardings()
  tx = SPARSE[name]()
  params = powers_of_two()
  found = tx.init(jax.device_put(params, wanted))
  assert_same(masks_of(found), masks_of(tx.init(params)), wanted)


def test_a_sort_of_all_leaves_gathers_them():
  """Shows that these tests detect collectives."""

  def joined(scores):
    flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(scores)])
    return jnp.sort(flat)[-100]

  given = jax.device_put(powers_of_two(), shardings())
  compiled = jax.jit(joined).lower(given).compile()
  assert max(size for _, size in collectives.sizes(compiled.as_text())) >= 768
  with pytest.raises(AssertionError):
    assert_no_leaf_travels(compiled)
