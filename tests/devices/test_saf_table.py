"""SAF's table on eight devices, each of which has the rows of its examples."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_sam

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


def mesh_of(axes, axis_type=AxisType.Auto):
  devices = np.asarray(jax.devices()).reshape(list(axes.values()))
  return Mesh(devices, tuple(axes), axis_types=(axis_type,) * len(axes))


def assert_same(one, other):
  (state, terms), (expected, expected_terms) = one, other
  for found, wanted in zip(state, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)
  assert max(term for term, _ in expected_terms) > 0
  for (term, gradient), wanted in zip(terms, expected_terms, strict=True):
    np.testing.assert_allclose(term, wanted[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, wanted[1], rtol=1e-4, atol=1e-7)


def assert_the_table_stays(program):
  """Nothing of the size of the table, or of a slot of it, is sent."""
  sent = re.findall(
    r'= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|'
    r'collective-permute|reduce-scatter)',
    program,
  )
  assert sent
  sizes = [np.prod([int(x) for x in shape.split(',') if x]) for shape in sent]
  assert max(sizes) <= 2 * ROWS * CLASSES


@pytest.mark.parametrize(
  ('axes', 'axis_type'),
  [
    ({'data': 8}, AxisType.Auto),
    ({'data': 8}, AxisType.Explicit),
    ({'data': 4, 'fsdp': 2}, AxisType.Auto),
  ],
)
def test_a_sharded_table_stays_where_it_is(axes, axis_type, alone):
  mesh, saf = mesh_of(axes, axis_type), optax_sam.saf_loss()
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


@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 4, 'model': 2}])
@pytest.mark.parametrize('check', [True, False])
def test_over_an_axis_a_batch_may_show_any_example(axes, check, alone):
  axis = tuple(axes)
  mesh, saf = mesh_of(axes), optax_sam.saf_loss(axis_name=axis)
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
  # Every device divides by its own rows.
  terms = [(term, gradient / 8) for term, gradient in terms]
  assert_same((state, terms), alone)


def test_examples_of_its_own_need_no_axis():
  """With ids counted from the first of a device, nothing is sent."""
  saf, mesh = optax_sam.saf_loss(), mesh_of({'data': 8})
  step = jax.jit(
    jax.shard_map(
      stepping(saf, lambda term: term[None]),
      mesh=mesh,
      in_specs=(P('data'), P('data'), P('data'), P()),
      out_specs=(P('data'), (P('data'), P('data'))),
    )
  )
  own = EXAMPLES // 8
  ids = np.arange(ROWS) * own // 2  # two on each device
  state, one = saf.init(EXAMPLES, CLASSES), saf.init(EXAMPLES, CLASSES)
  for epoch in range(EPOCHS):
    angles = np.arange(ROWS * CLASSES).reshape(ROWS, CLASSES) + epoch
    logits = jnp.asarray(3 * np.sin(angles), 'float32')
    args = (jnp.int32(epoch),)
    state, (terms, _) = step(state, logits, ids % own, *args)
    one, (expected, _) = jax.jit(stepping(saf))(one, logits, ids, *args)
    np.testing.assert_allclose(jnp.mean(terms), expected, rtol=1e-5)
  for found, wanted in zip(state, one, strict=True):
    np.testing.assert_array_equal(found, wanted)
  program = step.lower(state, logits, ids, jnp.int32(0)).compile().as_text()
  assert not re.search('all-|reduce-scatter|collective', program)
