"""Small comparisons with numbers chosen by the tests."""

import math

from optax_sam.train.reports.results import Comparison, Run, Timing

STEPS = 20
SGD = [0.900, 0.920, 0.910]
BETTER = [0.930, 0.951, 0.942]
WORSE = [0.850, 0.871, 0.862]
SIMILAR = [0.910, 0.910, 0.915]


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


def usual(**changes):
  """A comparison of sgd, sam and asam with three seeds and timings."""
  made = of_accuracies(sgd=SGD, sam=BETTER, asam=SIMILAR)
  timings = [timing('sgd', [1.0, 1.0]), timing('sam', [1.9, 2.1])]
  return comparison(made.runs, **({'timings': timings} | changes))


ODD = {
  'no runs': comparison([], interrupted=True),
  'base only': of_accuracies(sgd=SGD),
  'base missing': of_accuracies(sam=BETTER, asam=SIMILAR),
  'one seed': of_accuracies(sgd=[0.9], sam=[0.91]),
  'equal': of_accuracies(sgd=SGD, sam=SGD),
  'nothing measured': comparison(
    [
      run(method, 0, 0.9, sharpness={}, log=[], evaluations=[])
      for method in ('sgd', 'sam')
    ]
  ),
  'diverged': comparison(
    [
      run('sgd', 0, 0.9),
      run('sgd', 1, 0.92),
      run('sam', 0, 0.9),
      diverged('sam', 1),
    ],
    timings=[Timing('sam', [math.nan], [math.nan], None)],
  ),
  'all diverged': comparison([diverged('sgd', 0), diverged('sam', 0)]),
  'NaN from the first step': comparison(
    [
      run('sgd', 0, 0.9),
      run('sam', 0, 0.1, log=[{'step': 2, 'loss': math.nan}]),
    ]
  ),
  'infinite loss': comparison(
    [run('sgd', 0, 0.9, loss=math.inf), run('sam', 0, 0.9, loss=1e300)]
  ),
  'one log row': comparison(
    [
      run('sgd', 0, 0.9, log=[{'step': 20, 'loss': 0.0}]),
      run('sam', 0, 0.9, stop=2),
    ]
  ),
  'huge sharpness': comparison(
    [
      run('sgd', 0, 0.9),
      run('sam', 0, 0.9, sharpness={'top_eigenvalue': 1e305}),
    ]
  ),
  'negative sharpness': comparison(
    [run('sgd', 0, 0.9, sharpness={'sam_sharpness': -0.1})]
  ),
  'twelve methods, twenty seeds': of_accuracies(
    sgd=[0.9 + 0.001 * seed for seed in range(20)],
    **{
      f'a_method_with_a_long_name_{index}': [
        0.9 + 0.0011 * seed + 0.001 * index for seed in range(20)
      ]
      for index in range(11)
    },
  ),
}
