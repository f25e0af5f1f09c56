"""Small configurations that the tests of the trainer share."""

from optax_sam.train import models
from optax_sam.train.config import configs
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import task
from optax_sam.train.loop.trainer import Trainer
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


def small_task(model, batch_size, process=None):
  small = {
    'mlp': models.MLP(10, widths=(16,)),
    'cnn': models.CNN(10, widths=(4, 8)),
  }
  examples = inputs.InMemory(datasets.load('digits'), batch_size, process)
  return task.Task(small[model], examples)


def trainer(name, *, given=None, **changes):
  config = compare_config(**changes)
  settings = build.complete_settings(name, given or {}, config.rho)
  problem = small_task(config.model, config.batch_size)
  return Trainer(config, problem, name, settings)
