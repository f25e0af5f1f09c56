"""Flax: one dropout mask and one update of running statistics per step."""

import functools
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
from optax_sam.flax import TrainState, nnx_per_example_value_fn, nnx_value_fn

BATCH, FEATURES, HIDDEN, RATE = 12, 5, 16, 0.5
RHO, LEARNING_RATE = 0.3, 0.1


class Linen(nn.Module):
  """Batch norm and dropout."""

  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=False)(nn.Dense(HIDDEN)(x))
    x = nn.Dropout(RATE, deterministic=False)(nn.tanh(x))
    return nn.Dense(1)(x)[:, 0]


class Nnx(nnx.Module):
  """The same in NNX."""

  def __init__(self, rngs):
    self.first = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
    self.norm = nnx.BatchNorm(HIDDEN, rngs=rngs)
    self.dropout = nnx.Dropout(RATE, rngs=rngs)
    self.last = nnx.Linear(HIDDEN, 1, rngs=rngs)

  def __call__(self, x):
    x = self.norm(self.first(x))
    return self.last(self.dropout(nnx.tanh(x)))[:, 0]


class State(TrainState):
  batch_stats: Any


def make_batch():
  x, y = jax.random.normal(jax.random.key(1), (2, BATCH, FEATURES))
  return {'x': x, 'y': jnp.sum(y, axis=1)}


@functools.cache
def initial_variables():
  keys = {'params': jax.random.key(2), 'dropout': jax.random.key(0)}
  return jax.jit(Linen().init)(keys, make_batch()['x'])


def make_state(method):
  variables = jax.tree.map(jnp.copy, initial_variables())
  return State.create(
    apply_fn=Linen().apply,
    params=variables['params'],
    tx=optax.chain(method, optax.sgd(LEARNING_RATE)),
    batch_stats=variables['batch_stats'],
  )


def linen_losses(state, params, batch, key):
  predictions, mutated = state.apply_fn(
    {'params': params, 'batch_stats': state.batch_stats},
    batch['x'],
    rngs={'dropout': key},
    mutable=['batch_stats'],
  )
  return jnp.square(predictions - batch['y']), mutated


def linen_step(state, batch, key):
  def loss_fn(params):
    losses, mutated = linen_losses(state, params, batch, key)
    return jnp.mean(losses), mutated['batch_stats']

  def later_losses(params, rows):
    return linen_losses(state, params, rows, key)[0]

  grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
  return state.apply_gradients(
    grads=grads,
    value_fn=lambda params: jnp.mean(later_losses(params, batch)),
    per_example_value_fn=later_losses,
    batch=batch,
    batch_stats=batch_stats,
  )


jitted_linen_step = jax.jit(linen_step)


def nnx_losses(model, batch):
  return jnp.square(model(batch['x']) - batch['y'])


def nnx_loss(model, batch):
  losses = nnx_losses(model, batch)
  return jnp.mean(losses), losses


def nnx_step(model, optimizer, batch):
  value_fn = nnx_value_fn(model, nnx_loss, batch)
  losses_fn = nnx_per_example_value_fn(model, nnx_losses)
  grads, _ = nnx.grad(nnx_loss, has_aux=True)(model, batch)
  optimizer.update(
    model,
    grads,
    value_fn=value_fn,
    per_example_value_fn=losses_fn,
    batch=batch,
  )


def make_nnx(method):
  model = Nnx(nnx.Rngs(0))
  tx = optax.chain(method, optax.sgd(LEARNING_RATE))
  return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.partial(jax.jit, static_argnums=(0, 3))
def step_by_hand(losses_fn, params, batch, size=None):
  """SAM with the ascent gradient of the examples with the largest losses."""
  if size is not None:
    worst = jnp.argsort(-losses_fn(params, batch))[:size]
    batch = jax.tree.map(lambda leaf: leaf[worst], batch)
  loss = lambda params: jnp.mean(losses_fn(params, batch))
  grads = jax.grad(loss)(params)
  norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
  moved = jax.tree.map(lambda w, g: w + RHO * g / norm, params, grads)
  perturbed = jax.grad(loss)(moved)
  return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, perturbed)


def distance(left, right):
  return max(
    np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  )


METHODS = {
  'sam': optax_sam.sam(RHO),
  'look_sam': optax_sam.look_sam(RHO, period=2),
  'k_sam': optax_sam.k_sam(RHO, ascent=4, descent=4),
}
by_method = pytest.mark.parametrize('name', METHODS)


@by_method
def test_linen_statistics_are_updated_in_the_first_pass_only(name):
  state, batch = make_state(METHODS[name]), make_batch()
  for number in range(2):
    key = jax.random.key(number)
    clean_pass = jax.jit(linen_losses)(state, state.params, batch, key)
    expected = clean_pass[1]['batch_stats']
    moved = jitted_linen_step(state, batch, key)
    assert distance(moved.batch_stats, state.batch_stats) > 1e-3
    assert distance(moved.batch_stats, expected) < 1e-6
    assert distance(moved.params, state.params) > 1e-3
    state = moved
  assert int(state.step) == 2


@by_method
def test_nnx_statistics_are_updated_in_the_first_pass_only(name):
  (model, optimizer), batch = make_nnx(METHODS[name]), make_batch()
  step, clean_pass = nnx.jit(nnx_step), nnx.jit(nnx_loss)
  for number in range(2):
    clean, params = nnx.clone(model), params_of(model)
    clean_pass(clean, batch)
    step(model, optimizer, batch)
    others = nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngKey))
    expected = nnx.as_pure(nnx.state(clean, others))
    assert distance(nnx.as_pure(nnx.state(model, others)), expected) < 1e-6
    assert int(model.dropout.rngs.count[...]) == number + 1
    assert distance(params_of(model), params) > 1e-3
  metrics = optax_sam.metrics(nnx.as_pure(optimizer.opt_state))
  assert int(metrics['step_count']) == 2


def test_both_passes_of_linen_use_the_same_dropout_mask():
  state, batch = make_state(METHODS['sam']), make_batch()
  key, other = jax.random.key(7), jax.random.key(8)

  def losses_fn(params, rows):
    return linen_losses(state, params, rows, key)[0]

  expected = step_by_hand(losses_fn, state.params, batch)
  moved = jitted_linen_step(state, batch, key)
  assert distance(moved.params, expected) < 1e-6
  other_mask = jitted_linen_step(state, batch, other)
  assert distance(other_mask.params, expected) > 1e-2


@pytest.mark.parametrize(('name', 'size'), [('sam', None), ('k_sam', 4)])
def test_all_passes_of_nnx_use_the_same_dropout_mask(name, size):
  (model, optimizer), batch = make_nnx(METHODS[name]), make_batch()
  graph, params, others = nnx.split(nnx.clone(model), nnx.Param, ...)
  others = nnx.as_pure(others)

  def losses_fn(params, rows):
    return nnx_losses(nnx.merge(graph, params, others), rows)

  expected = step_by_hand(losses_fn, nnx.as_pure(params), batch, size)
  nnx.jit(nnx_step)(model, optimizer, batch)
  assert distance(params_of(model), expected) < 1e-6


def test_nnx_trains_only_the_parameters_of_wrt():
  (model, _), batch = make_nnx(optax_sam.sam(RHO)), make_batch()
  wrt = nnx.All(nnx.Param, nnx.PathContains('last'))
  tx = optax.chain(optax_sam.sam(RHO), optax.sgd(LEARNING_RATE))
  optimizer = nnx.Optimizer(model, tx, wrt=wrt)
  first, last = model.first.kernel[...], model.last.kernel[...]
  value_fn = nnx_value_fn(model, nnx_loss, batch, wrt=wrt)
  diff = nnx.DiffState(0, wrt)
  grads, _ = nnx.grad(nnx_loss, argnums=diff, has_aux=True)(model, batch)
  optimizer.update(model, grads, value_fn=value_fn)
  assert distance(model.first.kernel[...], first) == 0
  assert distance(model.last.kernel[...], last) > 1e-3


def test_linen_step_compiles_once_and_donates():
  state, batch = make_state(optax_sam.ae_sam(RHO, total_steps=9)), make_batch()
  traces = []

  def step(state, key):
    traces.append(1)
    return linen_step(state, batch, key)

  donating = jax.jit(step, donate_argnums=0)
  for number in range(3):
    given, state = state, donating(state, jax.random.key(number))
    leaves = jax.tree.leaves((given.params, given.batch_stats))
    assert all(leaf.is_deleted() for leaf in leaves)
  assert len(traces) == 1


def test_nnx_step_compiles_once_and_donates():
  model, optimizer = make_nnx(optax_sam.ae_sam(RHO, total_steps=9))
  batch, traces = make_batch(), []

  def step(model, optimizer):
    traces.append(1)
    nnx_step(model, optimizer, batch)

  donating = nnx.jit(step, donate_argnums=(0, 1))
  for _ in range(3):
    kernel = model.first.kernel[...]
    donating(model, optimizer)
    assert kernel.is_deleted()
  assert len(traces) == 1


def test_normalization_layers_of_nnx_are_found():
  model, _ = make_nnx(optax_sam.sam(RHO))
  chosen = optax_sam.norm_layers_only(nnx.as_pure(nnx.state(model, nnx.Param)))
  chosen = nnx.to_pure_dict(chosen)
  assert chosen.pop('norm') == {'scale': True, 'bias': True}
  assert not any(jax.tree.leaves(chosen))


def test_train_state_forwards_extra_arguments():
  seen = {}

  def update(updates, opt_state, _, **extra):
    seen.update(extra)
    return updates, opt_state

  tx = optax.GradientTransformationExtraArgs(lambda _: (), update)
  state = make_state(tx)
  state.apply_gradients(
    grads=state.params, value_fn=jnp.sum, extra_args={'value': 1.0}
  )
  assert seen['value_fn'] is jnp.sum
  assert seen['value'] == 1.0


def test_train_state_with_an_unknown_argument_raises():
  state = make_state(optax_sam.sam(RHO))
  with pytest.raises(
    ValueError, match=r'value must be a field of State.*extra'
  ):
    state.apply_gradients(grads=state.params, value=1.0)
  with pytest.raises(ValueError, match="got 'value_fn': write apply_gradi"):
    state.apply_gradients(grads=state.params, extra_args={'value_fn': jnp.sum})
  with pytest.raises(ValueError, match='perturbed gradient needs a function'):
    state.apply_gradients(grads=state.params)


def test_the_core_imports_none_of_the_extras():
  extras = {'equinox', 'flax', 'scipy', 'matplotlib', 'orbax'}
  extras |= {'optax_sam.train'}
  code = f'import sys, optax_sam; print(*{extras} & sys.modules.keys())'
  assert _printed(code).split() == []


def test_other_modules_are_imported_at_first_use():
  names = ['equinox', 'flax', 'landscape', 'lora', 'sharpness', 'train']
  code = f'import optax_sam; print(*[getattr(optax_sam, x) for x in {names}])'
  printed = _printed(code)
  for name in names:
    assert f"<module 'optax_sam.{name}' from" in printed


def _printed(code):
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  return done.stdout
