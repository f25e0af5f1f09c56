"""Small comparisons with given numbers, and a parser of pages."""

import html.parser
import json
import math
import re

import pytest

from optax_sam.train.reports.results import Comparison, Run, Timing

STEPS = 20
SGD = [0.900, 0.920, 0.910]
BETTER = [0.930, 0.951, 0.942]
WORSE = [0.850, 0.871, 0.862]
SIMILAR = [0.910, 0.910, 0.915]


def _cost(step, fraction):
  return {'gradients': (1 + fraction) * step, 'seconds': 0.01 * step}


def run(
  method, seed, accuracy, *, fraction=0.0, stop=STEPS, loss=0.1, **changes
):
  """A run with given final accuracy, fraction of ascent steps and loss."""
  log = [
    {
      'step': step,
      'loss': loss if step == stop else 2.0 / step,
      'second_gradients': fraction * step,
      **_cost(step, fraction),
    }
    for step in range(2, stop + 1, 2)
  ]
  evaluations = [
    {
      'step': step,
      'test_loss': loss,
      'test_accuracy': accuracy * step / stop,
      'train_accuracy': 1.0,
      **_cost(step, fraction),
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
  """A run whose final loss and sharpness are NaN."""
  sharpness = {'sam_sharpness': math.nan, 'top_eigenvalue': math.nan}
  return run(method, seed, accuracy, loss=math.nan, sharpness=sharpness)


def comparison(runs, **changes):
  """A comparison of runs, by default without timings."""
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


def usual():
  """A comparison of sgd, sam and asam with three seeds and timings."""
  made = of_accuracies(sgd=SGD, sam=BETTER, asam=SIMILAR)
  timings = [timing('sgd', [1.0, 1.0]), timing('sam', [1.9, 2.1])]
  return comparison(made.runs, timings=timings)


def pair(**changes):
  """One regular run of sgd, and one of sam with changes."""
  return comparison([run('sgd', 0, 0.9), run('sam', 0, 0.9, **changes)])


ODD = {
  'no runs': comparison([], interrupted=True),
  'base missing': of_accuracies(sam=BETTER, asam=SIMILAR),
  'one seed': of_accuracies(sgd=[0.9], sam=[0.91]),
  'nothing measured': pair(sharpness={}, log=[], evaluations=[]),
  'diverged': comparison(
    [run('sgd', 0, 0.9), diverged('sgd', 1), diverged('sam', 1)],
    timings=[Timing('sam', [math.nan], [math.nan], None)],
  ),
  'infinite': pair(loss=math.inf, sharpness={'sam_sharpness': -0.1}),
}


_LOADING = {'src', 'srcset', 'data', 'poster', 'action', 'ping'}


class Page(html.parser.HTMLParser):
  """The text, tags and attributes of a page, and its data."""

  def __init__(self, html_text):
    super().__init__()
    self.html = html_text
    self.tags, self.attributes, self.text, self.scripts = [], [], '', []
    self.feed(html_text)
    self.close()
    self.data = json.loads(self.scripts[0], parse_constant=pytest.fail)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.scripts += [''] if tag == 'script' else []
    self.attributes += [(tag, name, value or '') for name, value in attrs]

  def handle_data(self, data):
    if self.tags and self.tags[-1] == 'script':
      self.scripts[-1] += data
    elif self.tags and self.tags[-1] != 'style':
      self.text += data

  def values(self, name):
    return [value for _, found, value in self.attributes if found == name]

  def assert_complete_in_itself(self):
    """Raises if the page may load a file or links to a file beside it."""
    assert len(self.scripts) == 3
    assert any(
      x.startswith("default-src 'none'") for x in self.values('content')
    )
    assert not {'img', 'iframe', 'object', 'base'} & set(self.tags)
    assert not {name for _, name, _ in self.attributes} & _LOADING
    assert not re.search(r'@import|url\(', self.html.partition('</style>')[0])
    for tag, name, value in self.attributes:
      if name == 'href' and tag == 'link':
        assert value.startswith('data:image/svg+xml,')
      elif name == 'href':
        assert value.startswith(('#', 'https://arxiv.org/abs/'))
    assert len(self.html.encode()) < 3e6
