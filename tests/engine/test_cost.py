"""Cost of one compiled step, counted in floating-point operations.

XLA counts a conditional as its costlier branch. So what a method that skips
adds to the clean gradient must be one gradient in a branch, and nothing beside
it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests import compiling

# Flax promotes ranks implicitly.
STRICT = False

_NUM_EXAMPLES = 96


class _Dense(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(256)(x))
    x = nn.relu(nn.Dense(256)(x))
    return nn.Dense(10)(nn.relu(nn.Dense(256)(x)))


class _Convolutional(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width, stride in ((16, 1), (32, 2)):
      x = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
    return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


_MODELS = {'dense': _Dense(), 'conv': _Convolutional()}


@functools.cache
def _flops(model, method=None, **settings):
  """Returns the operations of the uniform step, clean gradient included."""
  network = _MODELS[model]
  method = getattr(optax_sam, method)(**settings) if method else None
  method = method or optax.identity()
  tx = optax.with_extra_args_support(optax.chain(method, optax.sgd(0.1, 0.9)))

  def losses(params, statistics, batch):
    logits, new = network.apply(
      {'params': params, **statistics}, batch['x'], mutable=['batch_stats']
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['y']
    ), new

  def loss(params, statistics, batch):
    values, new = losses(params, statistics, batch)
    return jnp.mean(values), new

  def step(params, statistics, opt_state, batch):
    (value, new_statistics), grads = jax.value_and_grad(loss, has_aux=True)(
      params, statistics, batch
    )
    updates, opt_state = tx.update(
      grads,
      opt_state,
      params,
      value_fn=lambda p: loss(p, statistics, batch)[0],
      per_example_value_fn=lambda p, b: losses(p, statistics, b)[0],
      batch=batch,
    )
    params = optax.apply_updates(params, updates)
    return params, new_statistics, opt_state, value

  def arguments():
    batch = {
      'x': jnp.zeros((_NUM_EXAMPLES, 8, 8, 1)),
      'y': jnp.zeros(_NUM_EXAMPLES, int),
    }
    variables = network.init(jax.random.key(0), batch['x'])
    params = variables.pop('params')
    return params, variables, tx.init(params), batch

  program = jax.jit(step, **compiling.READ_AS_USERS)
  compiled = program.lower(*jax.eval_shape(arguments)).compile()
  return compiled.cost_analysis()['flops']


def _relative(model, method, **settings):
  return _flops(model, method, **settings) / _flops(model)


@pytest.mark.parametrize('model', _MODELS)
def test_sam_costs_two_gradients(model):
  assert 1.9 < _relative(model, 'sam') < 2.01


def test_each_further_ascent_step_costs_a_gradient():
  assert 2.85 < _relative('dense', 'sam', ascent_steps=2) < 3.02


@pytest.mark.parametrize('method', ['asam', 'friendly_sam'])
def test_methods_at_the_cost_of_sam(method):
  assert 1.9 < _relative('dense', method) < 2.05


def test_k_sam_costs_as_much_as_sgd():
  # The clean gradient of the uniform step is in there, and dropped by XLA. Its
  # forward pass serves the ranking.
  third = _relative('dense', 'k_sam', ascent=1 / 3, descent=1 / 3)
  quarter = _relative('dense', 'k_sam', ascent=1 / 4, descent=1 / 4)
  assert third < 1.05
  assert quarter < third - 0.1


def test_subset_sam_costs_what_is_drawn():
  # One gradient and a quarter, and the forward pass of the clean loss, which
  # this step returns: 1 + 1/4 + 1/3.
  quarter = _relative('dense', 'subset_sam', fraction=1 / 4)
  half = _relative('dense', 'subset_sam', fraction=1 / 2, key=0)
  assert 1.25 < quarter < 1.65
  assert 0.2 < half - quarter < 0.3


@pytest.mark.parametrize(
  ('method', 'settings'),
  [
    ('ss_sam', {'key': 0}),
    ('look_sam', {}),
    ('ae_sam', {'total_steps': 100}),
    ('ae_look_sam', {'total_steps': 100}),
  ],
)
def test_a_method_that_skips_costs_at_most_as_much_as_sam(method, settings):
  assert 1.9 < _relative('dense', method, **settings) < 2.05
