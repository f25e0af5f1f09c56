"""SAF's table on eight devices, split by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_sam
from tests.devices import collectives, programs

EXAMPLES, ROWS, CLASSES, EPOCHS = 2048, 16, 3, 7


def batches():
  generator = np.random.default_rng(0)
  chosen = generator.permutation(EXAMPLES)[: 2 * ROWS]
  for epoch in range(EPOCHS):
    order = generator.permutation(chosen)
    for ids in (order[:ROWS], order[ROWS:]):
      logits = 3 * generator.standard_normal((ROWS, CLASSES))
      yield epoch, ids, jnp.asarray(logits, 'float32')


def stepping(saf, average=lambda x: x):
  def step(state, logits, ids, epoch):
    found = jax.value_and_grad(saf.loss)(logits, state, ids, epoch)
    term, gradient = found
    return saf.update(logits, state, ids, epoch), (average(term), gradient)

  return step


def train(step, state, put=lambda x: x):
  found = []
  for epoch, ids, logits in batches():
    state, one = step(state, put(logits), put(ids), jnp.int32(epoch))
    found.append(one)
  return state, jax.device_get(found)


@pytest.fixture(scope='module')
def alone():
  saf = optax_sam.saf_loss()
  return train(jax.jit(stepping(saf)), saf.init(EXAMPLES, CLASSES))


def assert_same(one, other):
  (state, terms), (expected, expected_terms) = one, other
  for found, wanted in zip(state, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)
  assert max(term for term, _ in expected_terms) > 0
  for (term, gradient), wanted in zip(terms, expected_terms, strict=True):
    np.testing.assert_allclose(term, wanted[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-4, atol=1e-7)


def assert_the_table_stays(program):
  """Raises if a collective has the size of the table or of a slot."""
  sizes = [size for _, size in collectives.sizes(program)]
  assert 0 < max(sizes) <= 2 * ROWS * CLASSES


@pytest.mark.parametrize(
  ('axes', 'kind'),
  [
    ('data', AxisType.Auto),
    ('data', AxisType.Explicit),
    (('data', 'fsdp'), AxisType.Auto),
  ],
)
def test_a_sharded_table_is_not_communicated(axes, kind, alone):
  mesh, saf = programs.mesh(axes, kind), optax_sam.saf_loss()
  split = NamedSharding(mesh, P(mesh.axis_names))
  start = jax.device_put(saf.init(EXAMPLES, CLASSES), split)
  step = jax.jit(stepping(saf), donate_argnums=0)
  epoch, ids, logits = next(batches())
  program = step.lower(
    start,
    jax.device_put(logits, split),
    jax.device_put(ids, split),
    jnp.int32(epoch),
  ).compile()
  assert_the_table_stays(program.as_text())
  state, terms = train(step, start, lambda x: jax.device_put(x, split))
  for leaf in state:
    assert leaf.sharding.is_equivalent_to(split, leaf.ndim)
    assert len(leaf.addressable_shards[0].data) == EXAMPLES // 8
  assert_same((state, terms), alone)


@pytest.mark.parametrize('axis', ['data', ('data', 'model')])
@pytest.mark.parametrize('check', [True, False])
def test_over_a_named_axis_a_batch_may_have_any_example(axis, check, alone):
  mesh, saf = programs.mesh(axis), optax_sam.saf_loss(axis_name=axis)
  inner = stepping(saf, lambda term: jax.lax.pmean(term, axis))
  step = jax.jit(
    jax.shard_map(
      inner,
      mesh=mesh,
      in_specs=(P(axis), P(axis), P(axis), P()),
      out_specs=(P(axis), (P(), P(axis))),
      check_vma=check,
    )
  )
  start = saf.init(EXAMPLES, CLASSES)
  epoch, ids, logits = next(batches())
  program = step.lower(start, logits, ids, jnp.int32(epoch)).compile().as_text()
  assert_the_table_stays(program)
  state, terms = train(step, start)
  # Every device divides by its number of rows.
  terms = [(term, gradient / 8) for term, gradient in terms]
  assert_same((state, terms), alone)
