"""Flax: one dropout mask a step, one update of the running statistics."""

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
  """Batch norm and dropout; the mask can be given from outside."""

  @nn.compact
  def __call__(self, x, mask=None):
    x = nn.BatchNorm(use_running_average=False)(nn.Dense(HIDDEN)(x))
    dropout = nn.Dropout(RATE, deterministic=False)
    mask = dropout(jnp.ones_like(x)) if mask is None else mask
    self.sow('intermediates', 'mask', mask)
    return nn.Dense(1)(nn.tanh(x) * mask)[:, 0]


class Nnx(nnx.Module):
  """The same in NNX."""

  def __init__(self, rngs):
    self.first = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
    self.norm = nnx.BatchNorm(HIDDEN, rngs=rngs)
    self.dropout = nnx.Dropout(RATE, rngs=rngs)
    self.last = nnx.Linear(HIDDEN, 1, rngs=rngs)

  def __call__(self, x, mask=None):
    x = self.norm(self.first(x))
    mask = self.dropout(jnp.ones_like(x)) if mask is None else mask
    return self.last(nnx.tanh(x) * mask)[:, 0]


class State(TrainState):
  batch_stats: Any


def make_batch():
  x, y = jax.random.normal(jax.random.key(1), (2, BATCH, FEATURES))
  return {'x': x, 'y': jnp.sum(y, axis=1)}


@functools.cache
def initial_variables():
  keys = {'params': jax.random.key(2), 'dropout': jax.random.key(0)}
  return jax.jit(Linen().init)(keys, make_batch()['x'])


def make_state(method, base=None):
  variables = jax.tree.map(jnp.copy, initial_variables())
  return State.create(
    apply_fn=Linen().apply,
    params=variables['params'],
    tx=optax.chain(method, base or optax.sgd(LEARNING_RATE)),
    batch_stats=variables['batch_stats'],
  )


def linen_losses(state, params, batch, key, mask=None):
  predictions, mutated = state.apply_fn(
    {'params': params, 'batch_stats': state.batch_stats},
    batch['x'],
    mask,
    rngs={'dropout': key},
    mutable=['batch_stats', 'intermediates'],
  )
  return jnp.square(predictions - batch['y']), mutated


def linen_step(state, batch, key, later_key=None):
  """Takes one step; the later passes may be given another key."""

  def loss_fn(params):
    losses, mutated = linen_losses(state, params, batch, key)
    return jnp.mean(losses), mutated['batch_stats']

  def later_losses(params, rows):
    return linen_losses(state, params, rows, later_key)[0]

  later_key = key if later_key is None else later_key
  grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
  return state.apply_gradients(
    grads=grads,
    value_fn=lambda params: jnp.mean(later_losses(params, batch)),
    per_example_value_fn=later_losses,
    batch=batch,
    batch_stats=batch_stats,
  )


jitted_linen_step = jax.jit(linen_step)


def nnx_losses(model, batch, mask=None):
  return jnp.square(model(batch['x'], mask) - batch['y'])


def nnx_loss(model, batch, mask=None):
  losses = nnx_losses(model, batch, mask)
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


def step_by_hand(loss, params):
  """SAM and plain descent, written out."""
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
def test_linen_statistics_are_those_of_one_clean_pass(name):
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
def test_nnx_statistics_are_those_of_one_clean_pass(name):
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
  assert int(metrics['count']) == 2


def test_linen_passes_see_one_dropout_mask():
  state, batch = make_state(optax_sam.sam(RHO)), make_batch()
  key, other = jax.random.key(7), jax.random.key(8)
  mutated = linen_losses(state, state.params, batch, key)[1]
  (mask,) = mutated['intermediates']['mask']
  assert set(np.unique(mask)) == {0.0, 1 / (1 - RATE)}

  def loss(params):
    return jnp.mean(linen_losses(state, params, batch, other, mask)[0])

  expected = jax.jit(step_by_hand, static_argnums=0)(loss, state.params)
  one_mask = jitted_linen_step(state, batch, key)
  assert distance(one_mask.params, expected) < 1e-6
  two_masks = jitted_linen_step(state, batch, key, other)
  assert distance(two_masks.params, expected) > 1e-2
  other_mask = jitted_linen_step(state, batch, other)
  assert distance(other_mask.params, expected) > 1e-2


def test_nnx_passes_see_one_dropout_mask():
  (model, optimizer), batch = make_nnx(optax_sam.sam(RHO)), make_batch()
  mask = nnx.clone(model).dropout(jnp.ones((BATCH, HIDDEN)))
  assert set(np.unique(mask)) == {0.0, 1 / (1 - RATE)}
  graph, params, others = nnx.split(nnx.clone(model), nnx.Param, ...)
  others = nnx.as_pure(others)

  def loss(params):
    return nnx_loss(nnx.merge(graph, params, others), batch, mask)[0]

  by_hand = jax.jit(step_by_hand, static_argnums=0)
  expected = by_hand(loss, nnx.as_pure(params))
  nnx.jit(nnx_step)(model, optimizer, batch)
  assert distance(params_of(model), expected) < 1e-6


def test_nnx_snapshot_after_the_clean_pass_would_have_another_mask():
  (model, _), batch = make_nnx(optax_sam.sam(RHO)), make_batch()
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  before = nnx_value_fn(model, nnx_loss, batch)
  value = float(nnx_loss(model, batch)[0])
  after = nnx_value_fn(model, nnx_loss, batch)
  assert float(before(params)) == value
  assert abs(float(after(params)) - value) > 1e-2


def test_nnx_functions_change_nothing_and_repeat():
  (model, _), batch = make_nnx(optax_sam.sam(RHO)), make_batch()
  value_fn = nnx_value_fn(model, nnx_loss, batch=batch)
  losses_fn = nnx_per_example_value_fn(model, nnx_losses)
  arrays = nnx.Not(nnx.RngKey)
  before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, arrays)))
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  value = value_fn(params)
  assert float(value_fn(params)) == float(value)
  losses = losses_fn(params, batch)
  assert losses.shape == (BATCH,)
  np.testing.assert_allclose(jnp.mean(losses), value, rtol=1e-6)
  after = nnx.as_pure(nnx.state(model, arrays))
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_nnx_trains_what_wrt_names():
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


def k_sam_by_hand(losses_fn, params, batch, size):
  """Both gradients over the examples with the largest clean losses."""
  worst = np.argsort(-np.asarray(losses_fn(params, batch)))[:size]
  rows = jax.tree.map(lambda leaf: leaf[worst], batch)
  by_hand = jax.jit(step_by_hand, static_argnums=0)
  return by_hand(lambda p: jnp.mean(losses_fn(p, rows)), params)


def test_linen_k_sam_picks_among_the_examples():
  state, batch = make_state(METHODS['k_sam']), make_batch()
  key = jax.random.key(3)

  def losses_fn(params, rows):
    return linen_losses(state, params, rows, key)[0]

  expected = k_sam_by_hand(losses_fn, state.params, batch, 4)
  moved = jitted_linen_step(state, batch, key)
  assert distance(moved.params, expected) < 1e-6


def test_nnx_k_sam_picks_among_the_examples():
  (model, optimizer), batch = make_nnx(METHODS['k_sam']), make_batch()
  graph, params, others = nnx.split(nnx.clone(model), nnx.Param, ...)
  others = nnx.as_pure(others)

  def losses_fn(params, rows):
    return nnx_losses(nnx.merge(graph, params, others), rows)

  expected = k_sam_by_hand(losses_fn, nnx.as_pure(params), batch, 4)
  nnx.jit(nnx_step)(model, optimizer, batch)
  assert distance(params_of(model), expected) < 1e-6


def test_linen_step_compiles_once_and_donates():
  state, batch = make_state(optax_sam.ae_sam(RHO, total_steps=9)), make_batch()
  traces = []

  def step(state, key):
    traces.append(1)
    return linen_step(state, batch, key)

  keys = [jax.random.key(number) for number in range(3)]
  expected, plain = state, jax.jit(step)
  for key in keys:
    expected = plain(expected, key)
  donating = jax.jit(step, donate_argnums=0)
  for key in keys:
    given, state = state, donating(state, key)
    leaves = jax.tree.leaves((given.params, given.batch_stats))
    assert all(leaf.is_deleted() for leaf in leaves)
  assert len(traces) == 1
  assert distance(state, expected) < 1e-6


def test_nnx_step_compiles_once_and_donates():
  batch, traces, results = make_batch(), [], []

  def step(model, optimizer):
    traces.append(1)
    nnx_step(model, optimizer, batch)

  for donated in ((), (0, 1)):
    model, optimizer = make_nnx(optax_sam.ae_sam(RHO, total_steps=9))
    compiled = nnx.jit(step, donate_argnums=donated)
    del traces[:]
    for _ in range(3):
      kernel = model.first.kernel[...]
      compiled(model, optimizer)
      assert kernel.is_deleted() == bool(donated)
    assert len(traces) == 1
    results.append(params_of(model))
  assert distance(*results) < 1e-6


def test_normalization_layers_of_nnx_are_found():
  model, _ = make_nnx(optax_sam.sam(RHO))
  chosen = optax_sam.norm_layers_only(nnx.as_pure(nnx.state(model, nnx.Param)))
  chosen = nnx.to_pure_dict(chosen)
  assert chosen.pop('norm') == {'scale': True, 'bias': True}
  assert not any(jax.tree.leaves(chosen))


def test_train_state_takes_any_optimizer():
  batch, key = make_batch(), jax.random.key(0)
  plain = optax.GradientTransformation(*optax.sgd(LEARNING_RATE))
  state = make_state(optax_sam.sam(0.0)).replace(tx=plain)
  state = state.replace(opt_state=plain.init(state.params))
  moved = jitted_linen_step(state, batch, key)
  assert moved.tx is plain
  base = jitted_linen_step(make_state(optax_sam.sam(0.0)), batch, key)
  assert distance(moved.params, base.params) < 1e-6


def test_train_state_passes_further_arguments_on():
  plateau = optax.contrib.reduce_on_plateau(patience=1, cooldown=0)
  base = optax.chain(optax.sgd(LEARNING_RATE), plateau)
  state = make_state(optax_sam.sam(RHO), base)

  @jax.jit
  def step(state):
    return state.apply_gradients(
      grads=state.params,
      grad_fn=lambda params: params,
      extra_args={'value': 1.0},
    )

  # The learning rate of Optax's element is promoted implicitly.
  with jax.numpy_dtype_promotion('standard'):
    for _ in range(3):
      state = step(state)
  assert float(state.opt_state[1][1].scale) < 1


def test_train_state_names_a_wrong_argument():
  state = make_state(optax_sam.sam(RHO))
  with pytest.raises(
    ValueError, match=r'value must be a field of State.*extra'
  ):
    state.apply_gradients(grads=state.params, value=1.0)
  with pytest.raises(ValueError, match="got 'value_fn': write apply_gradi"):
    state.apply_gradients(grads=state.params, extra_args={'value_fn': jnp.sum})
  with pytest.raises(ValueError, match='second gradient needs a function'):
    state.apply_gradients(grads=state.params)


def test_the_core_imports_none_of_the_extras():
  extras = {'flax', 'scipy', 'matplotlib', 'orbax', 'optax_sam.train'}
  code = f'import sys, optax_sam; print(*{extras} & sys.modules.keys())'
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  assert done.stdout.split() == []
