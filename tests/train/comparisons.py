"""Small comparisons with numbers chosen by the tests."""

import math

from optax_sam.train.results import Comparison, Run, Timing

STEPS = 20


def run(method, seed, accuracy, *, share=0.0, stop=STEPS, loss=0.1, **changes):
  """A run that ends at the given accuracy, share and loss."""
  log = [
    {
      'step': step,
      'loss': loss if step == stop else 2.0 / step,
      'second_gradients': share * step,
    }
    for step in range(2, stop + 1, 2)
  ]
  evaluations = [
    {
      'step': step,
      'test_loss': loss,
      'test_accuracy': accuracy * step / stop,
      'train_accuracy': 1.0,
    }
    for step in (stop // 2, stop)
  ]
  values = {
    'settings': {} if method == 'sgd' else {'rho': 0.05},
    'log': log,
    'evaluations': evaluations,
    'sharpness': {'sam_sharpness': 0.01 * (seed + 1), 'top_eigenvalue': 5.0},
    'seconds': 1.5,
  }
  return Run(method=method, seed=seed, **(values | changes))


def diverged(method, seed, accuracy=0.1):
  """A run whose loss ends as NaN, with sharpness that is NaN as well."""
  sharpness = {'sam_sharpness': math.nan, 'top_eigenvalue': math.nan}
  return run(method, seed, accuracy, loss=math.nan, sharpness=sharpness)


def comparison(runs, **changes):
  """A comparison of the runs, without timings unless they are given."""
  values = {
    'settings': {'dataset': 'digits', 'model': 'cnn'},
    'command': 'optax-sam compare --seeds 3',
    'base': 'sgd',
    'timings': [],
    'versions': {'jax': '0.10.0'},
    'machine': {'device': 'cpu'},
    'started': '2025-01-02T03:04:05',
    'seconds': 75.0,
    'interrupted': False,
    'total_steps': STEPS,
    'test_examples': 500,
    'sharpness_radius': 0.05,
  }
  return Comparison(runs=runs, **(values | changes))


def of_accuracies(**accuracies):
  """A comparison of methods by the accuracies of seeds 0, 1, ..."""
  return comparison(
    [
      run(method, seed, value)
      for method, values in accuracies.items()
      for seed, value in enumerate(values)
    ]
  )


def timing(method, relative):
  """A timing with the given ratios to the base optimizer."""
  return Timing(method, [10.0 * x for x in relative], relative, 3 * 2**20)
