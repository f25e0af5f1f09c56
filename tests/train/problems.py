"""Small configurations for the tests of the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.flax import reestimate_batch_norm
from optax_sam.train import models
from optax_sam.train.config import configs
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import task
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.models import functions
from optax_sam.train.optimizers import build

SMALL = {
  'model': 'mlp',
  'steps': 12,
  'batch_size': 50,
  'evaluations': 2,
  'log_every': 1,
  'sharpness_examples': 20,
}


def compare_config(**changes):
  small = {'methods': ('sam',), 'seeds': 1, 'timing_rounds': 0}
  return configs.CompareConfig(**(SMALL | small | changes))


def train_config(**changes):
  return configs.TrainConfig(**(SMALL | {'checkpoint_every': 3} | changes))


def names(directory):
  return {path.name for path in directory.iterdir()}


MODULES = {
  'mlp': models.MLP(10, widths=(16,)),
  'cnn': models.CNN(10, widths=(4, 8)),
}


def small_task(model, batch_size, process=None):
  examples = inputs.InMemory(datasets.load('digits'), batch_size, process)
  return task.Task(functions.from_model(MODULES[model]), examples)


def module(one):
  """Returns the linen module of a trainer."""
  return MODULES[one.config.model]


def trainer(name, *, given=None, **changes):
  config = compare_config(**changes)
  settings = build.complete_settings(name, given or {}, config.rho)
  problem = small_task(config.model, config.batch_size)
  return Trainer(config, problem, name, settings)


def finished(one, seed=0, after_step=lambda _: None):
  """Returns a finished run of a trainer."""
  progress = one.start(seed)
  one.run(progress, seed, after_step)
  return progress


def reestimated(one, params, statistics):
  """Returns batch-norm statistics over the training examples, by hand."""

  def changed(variables, batch):
    return module(one).apply(
      variables, batch['inputs'], train=True, mutable=['batch_stats']
    )[1]

  train = one.task.inputs.train()
  batches = [
    {key: x[first::10] for key, x in train.items()} for first in range(10)
  ]
  variables = {'params': params, **statistics}
  return reestimate_batch_norm(changed, variables, batches)['batch_stats']


def assert_close(found, expected, rtol=1e-4, atol=2e-6):
  """Compares two pytrees, including keys."""

  def compare(one, other):
    if jnp.issubdtype(jnp.asarray(one).dtype, jax.dtypes.prng_key):
      one, other = jax.random.key_data(one), jax.random.key_data(other)
    np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)

  jax.tree.map(compare, found, expected)


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def slow_but(fast, names):
  """Returns test parameters, all but `fast` marked slow."""
  return [
    name if name in fast else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]
