"""One semantics under jit, shard_map and pmap, on eight fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optax_sam

DEVICES = 8
METHODS = {
  'sam': optax_sam.sam,
  'sam_inf': functools.partial(optax_sam.sam, p=np.inf),
  'sam_steps': functools.partial(optax_sam.sam, ascent_steps=2),
  'asam': optax_sam.asam,
  'friendly_sam': optax_sam.friendly_sam,
  'friendly_sam_official': functools.partial(
    optax_sam.friendly_sam, order='official'
  ),
  'fisher_sam': optax_sam.fisher_sam,
  'gsam': optax_sam.gsam,
  'wsam': functools.partial(optax_sam.wsam, gamma=0.6),
  'look_layer_sam': functools.partial(optax_sam.look_layer_sam, period=2),
  'sparse_sam_dynamic': functools.partial(
    optax_sam.sparse_sam_dynamic, refresh_every=2, total_steps=6, key=0
  ),
  # With all examples in the Fisher information, however they are spread.
  'sparse_sam_fisher': functools.partial(
    optax_sam.sparse_sam_fisher, refresh_every=2
  ),
  'ss_sam': functools.partial(optax_sam.ss_sam, key=0),
  'look_sam': functools.partial(optax_sam.look_sam, period=2),
  'ae_sam': functools.partial(optax_sam.ae_sam, total_steps=6),
  'ae_look_sam': functools.partial(optax_sam.ae_look_sam, total_steps=6),
}
SELECTING = {
  'k_sam': functools.partial(optax_sam.k_sam, ascent=2, descent=3),
  'subset_sam': functools.partial(optax_sam.subset_sam, fraction=0.5, key=0),
  'esam': functools.partial(optax_sam.esam, key=0),
  'm_sam': functools.partial(optax_sam.m_sam, micro_batch_size=3),
}
WAYS = ('shard_map', 'shard_map_unchecked', 'pmap')
# One method of every kind goes all ways, the others the strictest one.
ALL_WAYS = ('sam', 'friendly_sam', 'ss_sam', 'ae_look_sam', 'k_sam')


def cases(methods):
  return [
    (name, way)
    for name in methods
    for way in WAYS
    if way == 'shard_map' or name in ALL_WAYS
  ]


def test_there_are_eight_devices():
  assert jax.device_count() == DEVICES


def mesh():
  return Mesh(np.array(jax.devices()), ('data',))


def problem():
  key = jax.random.key(0)
  x = jax.random.normal(key, (32, 5))
  y = jnp.sin(jnp.sum(x, axis=1))
  params = {
    'hidden': {
      'kernel': 0.5 * jax.random.normal(jax.random.key(1), (5, 4)),
      'bias': jnp.full((4,), 0.1),
    },
    'out': jax.random.normal(jax.random.key(2), (4,)),
  }
  return params, {'x': x, 'y': y}


def losses(params, batch):
  layer = params['hidden']
  hidden = jnp.tanh(batch['x'] @ layer['kernel'] + layer['bias'][None])
  return jnp.square(hidden @ params['out'] - batch['y'])


def train_step(tx, params, state, batch, axis_name=None, *, cast=False):
  """The uniform step; gradients stay local to a device."""
  value_fn = lambda p: jnp.mean(losses(p, batch))
  local = params
  if cast:
    local = jax.lax.pcast(params, axis_name, to='varying')
  grads = jax.grad(value_fn)(local)
  updates, state = tx.update(
    grads,
    state,
    params,
    value_fn=value_fn,
    per_example_value_fn=losses,
    batch=batch,
  )
  return optax.apply_updates(params, updates), state


def run(method, way, steps=6, **kwargs):
  """Trains on eight devices; returns the parameters and states of all."""
  element = method(0.1, axis_name='data', **kwargs)
  tx = optax.chain(element, optax.sgd(0.05, momentum=0.9))
  params, batch = problem()
  state = tx.init(params)
  if way == 'pmap':
    step = jax.pmap(
      functools.partial(train_step, tx, axis_name='data'), axis_name='data'
    )
    spread = functools.partial(
      jax.tree.map, lambda x: jnp.broadcast_to(x[None], (DEVICES, *x.shape))
    )
    params, state = spread(params), spread(state)
    batch = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
  else:
    checked = way == 'shard_map'
    replicated, sharded = PartitionSpec(), PartitionSpec('data')
    step = jax.jit(
      jax.shard_map(
        functools.partial(train_step, tx, axis_name='data', cast=checked),
        mesh=mesh(),
        in_specs=(replicated, replicated, sharded),
        out_specs=replicated,
        check_vma=checked,
      )
    )
  for _ in range(steps):
    params, state = step(params, state, batch)
  return params, state


def run_on_one(method, steps=6, **kwargs):
  tx = optax.chain(method(0.1, **kwargs), optax.sgd(0.05, momentum=0.9))
  params, batch = problem()
  state = tx.init(params)
  step = jax.jit(functools.partial(train_step, tx))
  for _ in range(steps):
    params, state = step(params, state, batch)
  return params, state


def of_first_device(tree, way):
  return jax.tree.map(lambda x: x[0], tree) if way == 'pmap' else tree


def assert_close(left, right, tolerance=2e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance),
    left,
    right,
  )


def shards_of(leaf):
  return [np.asarray(shard.data) for shard in leaf.addressable_shards]


@pytest.mark.parametrize(('name', 'way'), cases(METHODS))
def test_synced_ascent_equals_the_global_batch(name, way):
  found, state = run(METHODS[name], way, sync_ascent=True)
  expected, expected_state = run_on_one(METHODS[name])
  assert_close(of_first_device(found, way), expected)
  found_metrics = optax_sam.metrics(of_first_device(state, way))
  expected_metrics = optax_sam.metrics(expected_state)
  for key, value in expected_metrics.items():
    np.testing.assert_allclose(
      found_metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )


@pytest.mark.parametrize(('name', 'way'), cases({**METHODS, **SELECTING}))
def test_replicas_stay_bit_equal(name, way):
  method = {**METHODS, **SELECTING}[name]
  params, state = run(method, way, steps=20)
  leaves = [
    leaf
    for leaf in jax.tree.leaves((params, state))
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  ]
  for leaf in leaves:
    shards = shards_of(leaf)
    assert len(shards) == DEVICES
    for shard in shards[1:]:
      np.testing.assert_array_equal(shard, shards[0])
  assert all(np.isfinite(shards_of(leaf)[0]).all() for leaf in leaves)


@pytest.mark.parametrize('way', WAYS)
def test_local_ascent_is_m_sharpness(way):
  """Each device perturbs by its own gradient: the mean of eight small SAMs."""
  found, _ = run(optax_sam.sam, way)
  params, batch = problem()
  base = optax.sgd(0.05, momentum=0.9)
  state = base.init(params)

  def perturbed_gradient(params, part):
    loss = lambda p: jnp.mean(losses(p, part))
    g = jax.grad(loss)(params)
    norm = optax.tree.norm(g)
    return jax.grad(loss)(
      jax.tree.map(lambda p, g: p + 0.1 * g / norm, params, g)
    )

  for _ in range(6):
    parts = [
      jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch)
      for i in range(DEVICES)
    ]
    all_grads = [perturbed_gradient(params, part) for part in parts]
    mean = jax.tree.map(lambda *g: sum(g) / DEVICES, *all_grads)
    updates, state = base.update(mean, state, params)
    params = optax.apply_updates(params, updates)
  assert_close(of_first_device(found, way), params)
  parts_on_one_device, _ = run_on_one(
    functools.partial(optax_sam.m_sam, micro_batch_size=4)
  )
  assert_close(parts_on_one_device, params)
  different, _ = run_on_one(optax_sam.sam)
  with pytest.raises(AssertionError):
    assert_close(params, different)


@pytest.mark.parametrize('name', METHODS)
def test_sharded_jit_equals_one_device(name):
  """Under jit the gradient is that of the global batch: nothing to set up."""
  expected, _ = run_on_one(METHODS[name])
  tx = optax.chain(METHODS[name](0.1), optax.sgd(0.05, momentum=0.9))
  params, batch = problem()
  batch = jax.device_put(batch, NamedSharding(mesh(), PartitionSpec('data')))
  params = jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))
  step = jax.jit(functools.partial(train_step, tx))
  state = tx.init(params)
  for _ in range(6):
    params, state = step(params, state, batch)
  assert_close(params, expected)


def count_all_reduces(tx):
  params, batch = problem()
  step = jax.jit(
    jax.shard_map(
      functools.partial(train_step, tx, axis_name='data', cast=True),
      mesh=mesh(),
      in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
      out_specs=PartitionSpec(),
    )
  )
  text = step.lower(params, tx.init(params), batch).compile().as_text()
  return text.count(' all-reduce(') + text.count(' all-reduce-start(')


def averaging_sgd():
  """What data-parallel SGD needs: one average of the gradients."""
  average = optax.stateless(lambda g, _: jax.lax.pmean(g, 'data'))
  return optax.with_extra_args_support(optax.chain(average, optax.sgd(0.05)))


@pytest.mark.parametrize(
  ('name', 'more'),
  [
    ('sam', 0),
    ('asam', 0),
    ('ss_sam', 0),
    ('k_sam', 0),
    ('subset_sam', 0),
    ('gsam', 0),
    ('wsam', 0),
    ('fisher_sam', 0),
    ('esam', 0),
    ('m_sam', 0),
    ('sparse_sam_dynamic', 1),  # inside of the branch that refreshes
    ('sparse_sam_fisher', 1),
    ('look_layer_sam', 1),
    ('friendly_sam', 1),
    ('ae_sam', 1),
    ('look_sam', 1),
    ('ae_look_sam', 1),
  ],
)
def test_local_ascent_adds_no_collective_to_stateless_methods(name, more):
  method = {**METHODS, **SELECTING}[name](0.1, axis_name='data')
  tx = optax.chain(method, optax.sgd(0.05))
  assert count_all_reduces(tx) == count_all_reduces(averaging_sgd()) + more


def test_gradients_that_were_summed_already_are_refused():
  params, batch = problem()
  tx = optax.chain(optax_sam.sam(axis_name='data'), optax.sgd(0.05))
  step = jax.shard_map(
    functools.partial(train_step, tx, axis_name='data', cast=False),
    mesh=mesh(),
    in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
    out_specs=PartitionSpec(),
  )
  with pytest.raises(ValueError, match=r'updates must be local.*pcast'):
    jax.jit(step)(params, tx.init(params), batch)
