"""Recomputed running statistics equal means by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.flax import reestimate_batch_norm

BATCH, FEATURES, HIDDEN = 10, 4, 6


class Net(nn.Module):
  """Two layers of batch norm with different momenta."""

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.BatchNorm, use_running_average=False)
    x = nn.Dense(HIDDEN)(x)
    x = norm(momentum=0.9)(x)
    x = nn.Dense(HIDDEN)(nn.relu(x))
    x = norm(momentum=0.9995, dtype=jnp.float32)(x)
    steps = self.variable('batch_stats', 'steps', lambda: jnp.asarray(3))
    steps.value = steps.value + 1
    return nn.Dense(1)(x)


def batches(count=3):
  random = np.random.default_rng(0)
  return [
    (number + random.normal(size=(BATCH, FEATURES))).astype(np.float32)
    for number in range(count)
  ]


def changed(model):
  return lambda variables, batch: model.apply(
    variables, batch, mutable=['batch_stats']
  )[1]


def by_hand(variables, data):
  """Returns the statistics of both layers in float64."""
  params = jax.tree.map(np.float64, variables['params'])
  sums = {}
  for batch in data:
    x = np.float64(batch)
    for layer in ('0', '1'):
      dense, norm = params[f'Dense_{layer}'], params[f'BatchNorm_{layer}']
      x = x @ dense['kernel'] + dense['bias']
      found = {'mean': x.mean(axis=0), 'var': x.var(axis=0)}
      for name, value in found.items():
        sums[layer, name] = sums.get((layer, name), 0) + value
      x = (x - found['mean']) / np.sqrt(found['var'] + 1e-5)
      x = np.maximum(x * norm['scale'] + norm['bias'], 0)
  return {
    f'BatchNorm_{layer}': {
      name: sums[layer, name] / len(data) for name in ('mean', 'var')
    }
    for layer in ('0', '1')
  }


def assert_is(found, expected):
  for layer, statistics in expected.items():
    for name, value in statistics.items():
      np.testing.assert_allclose(
        found[layer][name], value, rtol=2e-5, atol=1e-6, err_msg=layer
      )


@functools.cache
def variables():
  return Net().init(jax.random.key(0), batches()[0])


def spoilt():
  """Returns the variables with meaningless statistics."""
  statistics = jax.tree.map(
    lambda leaf: leaf * 100 + 7, variables()['batch_stats']
  )
  return {**variables(), 'batch_stats': statistics}


@pytest.mark.parametrize('count', [1, 3])
def test_statistics_are_means_over_the_batches(count):
  before = spoilt()
  data = batches(count)
  after = reestimate_batch_norm(changed(Net()), before, iter(data))
  assert_is(after['batch_stats'], by_hand(before, data))
  assert after['params'] is before['params']


def test_integer_statistics_are_unchanged():
  before = {**spoilt(), 'other': {'key': jax.random.key(3)}}

  def everything(variables, batch):
    return {**changed(Net())(variables, batch), 'other': variables['other']}

  after = reestimate_batch_norm(everything, before, batches(2))
  steps = before['batch_stats']['steps']
  assert int(after['batch_stats']['steps']) == int(steps)
  assert after['batch_stats']['steps'].dtype == steps.dtype
  assert after['other']['key'] is before['other']['key']


def test_statistics_that_are_not_running_means_raise():
  def squares(variables, batch):
    del batch
    return {'other': {'v': jnp.square(variables['other']['v'])}}

  before = {'params': {}, 'other': {'v': jnp.ones(2)}}
  with pytest.raises(ValueError, match='got other/v, which is no running mean'):
    reestimate_batch_norm(squares, before, batches(1))


@pytest.mark.parametrize('momentum', [0.0, 0.5])
def test_statistics_without_momentum_or_without_change_are_correct(momentum):
  model = nn.BatchNorm(use_running_average=False, momentum=momentum)
  data = [jnp.array([[1.0, 2.0], [1.0, 5.0]])]  # a mean of 1; it was 0
  before = model.init(jax.random.key(0), data[0])
  after = reestimate_batch_norm(changed(model), before, data)['batch_stats']
  np.testing.assert_allclose(after['mean'], [1.0, 3.5], rtol=1e-6)
  np.testing.assert_allclose(after['var'], [0.0, 2.25], rtol=1e-6, atol=1e-6)
