"""Masks from labels that perturb some leaves and update others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_sam
from tests import compiling

LABELS = {'kernel': 'frozen', 'a': 'lora', 'b': 'lora'}
X = np.random.default_rng(0).normal(size=(8, 6, 5))
Y = np.random.default_rng(1).normal(size=(8, 6, 3))


def start():
  rng = np.random.default_rng(2)
  shapes = {'kernel': (5, 3), 'a': (5, 2), 'b': (2, 3)}
  return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def loss_fn(params, batch):
  merged = params['kernel'] + params['a'] @ params['b']
  return jnp.mean(jnp.square(jnp.tanh(batch['x'] @ merged) - batch['y']))


def optimizer(method, base, labels=LABELS):
  parts = {'lora': base, 'frozen': optax.set_to_zero()}
  return optax.chain(method, optax.partition(parts, labels))


def gradient(w, x, y):
  """The gradient of the merged kernel, and of the factors, in NumPy."""
  h = np.tanh(x @ (w['kernel'] + w['a'] @ w['b']))
  kernel = x.T @ (2 * (h - y) / y.size * (1 - h**2))
  return {'kernel': kernel, 'a': kernel @ w['b'].T, 'b': w['a'].T @ kernel}


@pytest.mark.usefixtures('float64')
def test_base_is_perturbed_and_adapters_are_updated():
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  tx = optimizer(optax_sam.sam(0.3, mask=mask), optax.sgd(0.5))
  step = jax.jit(optax_sam.make_step(loss_fn, tx))
  expected = start()
  params = jax.tree.map(jnp.asarray, expected)
  opt_state, kernel = tx.init(params), params['kernel']
  for x, y in zip(X, Y, strict=True):
    params, opt_state, _ = step(params, opt_state, {'x': x, 'y': y})
    g = gradient(expected, x, y)['kernel']
    moved = expected['kernel'] + 0.3 * g / (np.linalg.norm(g) + 1e-12)
    u = gradient({**expected, 'kernel': moved}, x, y)
    for name in 'ab':
      expected[name] = expected[name] - 0.5 * u[name]
  for name in 'ab':
    np.testing.assert_allclose(params[name], expected[name], rtol=0, atol=1e-12)
  assert (params['kernel'] == kernel).all()


@pytest.mark.usefixtures('float64')
def test_a_part_of_the_trained_leaves_can_be_perturbed():
  labels = {'kernel': 'frozen', 'a': 'first', 'b': 'lora'}
  mask = optax_sam.trainable(labels, frozen='frozen', perturbed=('first',))
  method, w = optax_sam.sam(0.3, mask=mask), start()
  params, batch = jax.tree.map(jnp.asarray, w), {'x': X[0], 'y': Y[0]}
  value_fn = lambda p: loss_fn(p, batch)
  grads = jax.grad(value_fn)(params)
  updates, state = method.update(
    grads, method.init(params), params, value_fn=value_fn
  )
  g = gradient(w, X[0], Y[0])
  size = np.linalg.norm(g['a'])
  u = gradient({**w, 'a': w['a'] + 0.3 * g['a'] / (size + 1e-12)}, X[0], Y[0])
  for name in 'ab':
    np.testing.assert_allclose(updates[name], u[name], rtol=0, atol=1e-12)
  assert updates['kernel'] is grads['kernel']
  metrics = optax_sam.metrics(state)
  np.testing.assert_allclose(metrics['ascent_norm'], size, rtol=1e-12)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('is_synced', [False, True])
def test_each_device_perturbs_the_base_by_its_rows(is_synced):
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  tx = optimizer(
    optax_sam.sam(0.3, mask=mask, axis_name='data', sync_ascent=is_synced),
    optax.sgd(0.5),
  )
  step = jax.jit(
    jax.shard_map(
      optax_sam.make_step(loss_fn, tx, axis_name='data'),
      mesh=Mesh(jax.devices()[:2], ('data',)),
      in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
      out_specs=PartitionSpec(),
    )
  )
  expected = start()
  params = jax.tree.map(jnp.asarray, expected)
  opt_state, kernel = tx.init(params), params['kernel']
  for x, y in zip(X, Y, strict=True):
    params, opt_state, _ = step(params, opt_state, {'x': x, 'y': y})
    rows = [(x[:3], y[:3]), (x[3:], y[3:])]
    of = [gradient(expected, *part)['kernel'] for part in rows]
    of = [sum(of) / 2] * 2 if is_synced else of
    found = []
    for g, part in zip(of, rows, strict=True):
      moved = expected['kernel'] + 0.3 * g / (np.linalg.norm(g) + 1e-12)
      found.append(gradient({**expected, 'kernel': moved}, *part))
    for name in 'ab':
      u = (found[0][name] + found[1][name]) / 2
      expected[name] = expected[name] - 0.5 * u
  for name in 'ab':
    np.testing.assert_allclose(params[name], expected[name], rtol=0, atol=1e-12)
  assert (params['kernel'] == kernel).all()


@pytest.mark.parametrize('perturbed', [None, 'frozen'])
def test_gradients_of_frozen_leaves_are_not_communicated(perturbed):
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed=perturbed)
  method = optax_sam.sam(0.3, mask=mask, axis_name='data')
  tx = optimizer(method, optax.sgd(0.5))
  mapped = jax.shard_map(
    optax_sam.make_step(loss_fn, tx, axis_name='data'),
    mesh=Mesh(jax.devices()[:2], ('data',)),
    in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
    out_specs=PartitionSpec(),
  )
  params = jax.tree.map(jnp.float32, start())
  batch = {'x': jnp.float32(X[0]), 'y': jnp.float32(Y[0])}
  step = jax.jit(mapped, **compiling.READ_AS_USERS)
  compiled = step.lower(params, tx.init(params), batch).compile()
  averages = [
    line for line in compiled.as_text().splitlines() if ' all-reduce(' in line
  ]
  assert any('f32[5,2]' in line for line in averages)
  assert not any('f32[5,3]' in line for line in averages)
  trained, _, _ = compiled(params, tx.init(params), batch)
  assert (trained['kernel'] == params['kernel']).all()


def test_all_trained_leaves_perturbed_equal_the_default():
  params = jax.tree.map(jnp.float32, start())
  batch = {'x': jnp.float32(X[0]), 'y': jnp.float32(Y[0])}
  value_fn = lambda p: loss_fn(p, batch)
  found = []
  for perturbed in (None, 'lora'):
    mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed=perturbed)
    method = optax_sam.sam(0.3, mask=mask)
    grads = jax.grad(value_fn)(params)
    found.append(
      method.update(grads, method.init(params), params, value_fn=value_fn)[0]
    )
  assert all((found[0][name] == found[1][name]).all() for name in LABELS)


def _cost(loss, params, method):
  """Operations of a compiled step."""
  tx = optimizer(method, optax.sgd(1e-3, momentum=0.9))
  step = jax.jit(optax_sam.make_step(loss, tx), **compiling.READ_AS_USERS)
  batch = {'x': jnp.ones((64, 256)), 'y': jnp.ones((64, 256))}
  compiled = step.lower(params, tx.init(params), batch).compile()
  sizes = [x.size for x in jax.tree.leaves(tx.init(params))]
  return compiled.cost_analysis()['flops'], max(sizes)


def test_leaves_that_are_only_perturbed_cost_the_ascent_gradient_alone():
  shapes = {'kernel': (256, 256), 'a': (256, 2), 'b': (2, 256)}
  params = {name: jnp.ones(shape) for name, shape in shapes.items()}

  def loss(p, batch):
    found = batch['x'] @ p['kernel'] + batch['x'] @ p['a'] @ p['b']
    return jnp.mean(jnp.square(found - batch['y']))

  of = lambda **given: optax_sam.trainable(LABELS, frozen='frozen', **given)
  product = 2 * 64 * 256**2  # of one pass through the kernel
  # Forward and weight gradient at the kernel, forward at the perturbed one.
  found, largest = _cost(
    loss, params, optax_sam.sam(0.1, mask=of(perturbed='frozen'))
  )
  assert 2.9 * product < found < 3.3 * product
  assert largest == 2 * 256  # nothing of the size of the kernel
  # Two forward passes, no weight gradient.
  found, _ = _cost(loss, params, optax_sam.sam(0.1, mask=of()))
  assert 0.9 * product < found < 2.2 * product


@pytest.mark.parametrize('name', ['ae_sam', 'friendly_sam', 'asam', 'z_sharp'])
def test_other_methods_do_not_update_the_perturbed_base(name):
  given = {'total_steps': 9} if name == 'ae_sam' else {}
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  tx = optimizer(
    getattr(optax_sam, name)(0.3, mask=mask, **given), optax.sgd(1)
  )
  step = jax.jit(optax_sam.make_step(loss_fn, tx))
  first = params = jax.tree.map(jnp.float32, start())
  opt_state = tx.init(params)
  for x, y in zip(X[:2], Y[:2], strict=True):
    batch = {'x': jnp.float32(x), 'y': jnp.float32(y)}
    params, opt_state, _ = step(params, opt_state, batch)
  assert (params['kernel'] == first['kernel']).all()
  assert all((params[name] != first[name]).any() for name in 'ab')


def test_a_gradient_that_is_not_finite_does_not_count_as_a_step():
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  method, params = optax_sam.sam(0.3, mask=mask), start()
  params = jax.tree.map(jnp.float32, params)
  state = method.init(params)
  nan = lambda p: jax.tree.map(lambda x: x * jnp.float32('nan'), p)
  updates, after = method.update(params, state, params, grad_fn=nan)
  assert not np.isfinite(updates['a']).any()
  assert all(
    (x == y).all()
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
  )


def test_a_perturbed_label_that_no_leaf_has_raises():
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='base')
  with pytest.raises(ValueError, match=r"perturbed must name .*'base'"):
    optax_sam.sam(mask=mask).init(start())


def test_a_perturbed_leaf_without_a_gradient_raises():
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  method = optax_sam.sam(mask=mask)
  params = jax.tree.map(jnp.float32, start())
  grads = {**params, 'kernel': None}
  with pytest.raises(ValueError, match=r"updates must hold .*'kernel'"):
    method.update(grads, method.init(params), params, grad_fn=lambda p: p)


def test_a_perturbed_complex_leaf_raises():
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  params = {**start(), 'kernel': np.ones((5, 3), np.complex64)}
  with pytest.raises(ValueError, match='params must be real'):
    optax_sam.sam(mask=mask).init(params)


@pytest.mark.parametrize(
  ('name', 'given'),
  [
    ('lookbehind', {}),
    ('sampa', {'batch_like': np.ones((8, 1))}),
    ('wsam_decoupled', {'learning_rate': 0.1}),
  ],
)
def test_methods_that_wrap_the_base_raise(name, given):
  mask = optax_sam.trainable(LABELS, frozen='frozen', perturbed='frozen')
  with pytest.raises(ValueError, match='perturbed must be None'):
    getattr(optax_sam, name)(optax.sgd(0.1), mask=mask, **given)
