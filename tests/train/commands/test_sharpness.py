import csv
import io
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

import optax_sam
from optax_sam import landscape
from optax_sam.train.commands import sharpness
from optax_sam.train.config import configs, output_dir
from optax_sam.train.data import datasets
from optax_sam.train.loop import task
from tests.train import problems
from tests.train.reports.comparisons import Page
from tests.train.runs import arrays, call, refused, run

SMALL = {'examples': 64, 'probes': 2, 'eigenvalues': 2}


@pytest.fixture(scope='module')
def runs(tmp_path_factory, quick_eigenvalues):
  """Two finished runs, of two methods."""
  del quick_eigenvalues
  directory = tmp_path_factory.mktemp('runs')
  found = [
    problems.train_config(output=directory / method, method=method)
    for method in ('sgd', 'sam')
  ]
  assert all(run(given)[0] for given in found)
  return found


def measured(runs, target, **changes):
  given = configs.SharpnessConfig(
    runs=tuple(one.output for one in runs), output=target, **SMALL | changes
  )
  console = Console(file=io.StringIO(), width=100)
  sharpness.run(given, console, 'optax-sam sharpness <these>')
  return read(target / 'sharpness.csv'), console.file.getvalue()


def read(path):
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def both(runs, tmp_path_factory):
  """Both runs measured: directory, numbers and output."""
  target = tmp_path_factory.mktemp('measured') / 'out'
  return target, *measured(runs, target, rho=0.2, seed=3)


@pytest.fixture(scope='module')
def solutions(runs):
  """Final parameters of each run, its loss and the arguments of the loss."""
  train = datasets.load('digits').train
  batch = {name: jax.numpy.asarray(x[:64]) for name, x in train.items()}
  found = []
  for given in runs:
    progress, _ = arrays(given)
    args = (progress.state.statistics, batch)
    found.append((progress, task.build(given).evaluation_loss, args))
  return found


def gaussian(params, seed):
  generator = np.random.default_rng(seed)
  draw = lambda leaf: generator.standard_normal(leaf.shape).astype(leaf.dtype)
  return jax.tree.map(draw, params)


def test_numbers_are_measured_at_the_last_checkpoint(solutions, both):
  target, rows, printed = both
  assert [row['run'] for row in rows] == ['sgd', 'sam']
  line = read(target / 'landscape.csv')
  for row, (progress, loss, args) in zip(rows, solutions, strict=True):
    params = progress.state.params
    expected = optax_sam.sharpness.sam_sharpness(loss, params, 0.2, args=args)
    direction = landscape.filter_normalized(gaussian(params, 3), params)
    _, losses = landscape.line(loss, params, direction, points=41, args=args)
    found = [float(x['loss']) for x in line if x['run'] == row['run']]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    assert float(row['sam_sharpness']) == pytest.approx(expected, rel=1e-3)
    accuracy = progress.evaluations[-1]['test_accuracy']
    assert float(row['test_accuracy']) == accuracy
    assert float(row['eigenvalue_1']) >= float(row['eigenvalue_2'])
    numbers = [float(row[name]) for name in row if name != 'run']
    assert np.isfinite(numbers).all()
    assert f'{accuracy:.4g}' in printed
  assert problems.names(target) == sharpness.FILES | {output_dir.LOCK}
  assert str(target / 'report.html') in printed


def test_the_page_shows_numbers_and_command(both):
  target, rows, _ = both
  page = Page((target / 'report.html').read_text('utf-8'))
  page.assert_complete_in_itself()
  assert set(page.data['figures']) == {'landscape'}
  assert 'optax-sam sharpness <these>' in page.text
  for row in rows:
    for key in ('sam_sharpness', 'adaptive_sharpness', 'eigenvalue_2'):
      value = f'{float(row[key]):.3g}'.replace('-', '\N{MINUS SIGN}')
      assert value in page.text


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'examples': 10**6}, '--examples must be at most'),
    ({'probes': 1}, '--probes must be at least 2'),
    ({'rho': -1.0}, '--rho must be above 0'),
  ],
)
def test_bad_values_write_nothing(changes, named, runs, tmp_path):
  with pytest.raises(ValueError, match=named):
    measured(runs[:1], tmp_path / 'out', **changes)
  assert not list(tmp_path.iterdir())


def test_only_finished_runs_of_one_dataset_are_measured(runs, tmp_path, capsys):
  first, half, noisy = runs[0].output, tmp_path / 'half', tmp_path / 'noisy'
  part, other = tmp_path / 'part', tmp_path / 'other'
  for path, changed in (
    (half, {}),
    (noisy, {'label_noise': 0.5}),
    (part, {'train_examples': 200}),
    (other, {'loss': 'mean_squared_error'}),
  ):
    path.mkdir()
    settings = configs.settings(runs[0]) | changed
    output_dir.write_config(path, 'train', settings)
  for path in (noisy, part, other):
    (path / 'metrics.jsonl').touch()
  for paths, named in (
    ([tmp_path], 'is not a run'),
    ([half], 'has not finished'),
    ([first, noisy], 'label_noise is 0.0 in'),
    ([first, part], 'train_examples is None in'),
    ([first, other], 'loss is'),
    ([first, first], 'different names'),
    ([], 'at least one run'),
  ):
    assert named in refused(capsys, 'sharpness', *paths)


@pytest.mark.usefixtures('muted')
def test_a_damaged_checkpoint_is_reported_and_not_deleted(
  runs, tmp_path, capsys
):
  path = shutil.copytree(runs[0].output, tmp_path / 'run')
  last = path / 'checkpoints' / str(runs[0].steps)
  for file in last.rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(b'')
  assert call('sharpness', path, '--output', tmp_path / 'out') == 2
  captured = capsys.readouterr()
  assert f'checkpoint of step {runs[0].steps} is damaged' in captured.out
  assert 'lacks the checkpoint' in captured.err
  assert last.exists()
  assert not (tmp_path / 'out').exists()
