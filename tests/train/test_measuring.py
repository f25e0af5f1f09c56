import csv
import io

import jax
import numpy as np
import pytest
from rich.console import Console

from optax_sam import sharpness
from optax_sam.train import cli, config, data, measuring, single, task
from tests.train import problems
from tests.train.test_single import arrays

STRICT = False  # Flax promotes ranks

SMALL = {'examples': 64, 'probes': 2, 'eigenvalues': 2}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two finished runs, of two methods."""
  directory = tmp_path_factory.mktemp('runs')
  found = []
  for method in ('sgd', 'sam'):
    given = problems.train_config(output=directory / method, method=method)
    assert single.run(given, Console(file=io.StringIO()))
    found.append(given)
  return found


def measured(runs, target, **changes):
  given = config.SharpnessConfig(
    runs=tuple(one.output for one in runs), output=target, **SMALL | changes
  )
  console = Console(file=io.StringIO(), width=100)
  measuring.run(given, console)
  with (target / 'sharpness.csv').open() as file:
    return list(csv.DictReader(file)), console.file.getvalue()


def test_the_figures_are_those_of_the_last_checkpoints(runs, tmp_path):
  rows, printed = measured(runs, tmp_path / 'out', rho=0.2)
  assert [row['run'] for row in rows] == ['sgd', 'sam']
  for row, given in zip(rows, runs, strict=True):
    progress, _ = arrays(given)
    problem = task.build(given)
    batch = {
      name: jax.numpy.asarray(values[:64])
      for name, values in data.load('digits').train.items()
    }
    expected = sharpness.sam_sharpness(
      problem.evaluation_loss,
      progress.state.params,
      0.2,
      args=(progress.state.statistics, batch),
    )
    assert float(row['sam_sharpness']) == pytest.approx(expected, rel=1e-3)
    accuracy = progress.evaluations[-1]['test_accuracy']
    assert float(row['test_accuracy']) == accuracy
    assert float(row['eigenvalue_1']) >= float(row['eigenvalue_2'])
    assert np.isfinite(
      [float(row[name]) for name in row if name != 'run']
    ).all()
    assert f'{accuracy:.4g}' in printed
  assert problems.names(tmp_path / 'out') == measuring.FILES


def test_what_was_measured_before_is_replaced_only_if_asked(runs, tmp_path):
  target = tmp_path / 'out'
  measured(runs[:1], target)
  with pytest.raises(ValueError, match='--overwrite'):
    measured(runs, target)
  rows, _ = measured(runs, target, overwrite=True)
  assert len(rows) == 2


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'examples': 10**6}, '--examples must be at most'),
    ({'examples': 0}, '--examples must be at least 1'),
    ({'probes': 1}, '--probes must be at least 2'),
    ({'rho': -1.0}, '--rho must be above 0'),
  ],
)
def test_bad_values_write_nothing(changes, named, runs, tmp_path):
  with pytest.raises(ValueError, match=named):
    measured(runs[:1], tmp_path / 'out', **changes)
  assert not list(tmp_path.iterdir())


def test_only_finished_runs_of_one_dataset_are_measured(runs, tmp_path, capsys):
  unfinished = tmp_path / 'unfinished'
  unfinished.mkdir()
  (unfinished / 'config.json').write_bytes(
    (runs[0].output / 'config.json').read_bytes()
  )
  noisy = problems.train_config(output=tmp_path / 'noisy', label_noise=0.5)
  assert single.run(noisy, Console(file=io.StringIO()))
  for paths, named in (
    ([tmp_path], 'is not a run'),
    ([unfinished], 'has not finished'),
    ([runs[0].output, noisy.output], 'label_noise is 0.0 in'),
    ([runs[0].output] * 2, 'different names'),
    ([], 'at least one run'),
  ):
    with pytest.raises(SystemExit) as stop:
      cli.main(['sharpness', *map(str, paths)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert named in error


def test_a_damaged_checkpoint_is_reported_and_left_alone(tmp_path, capsys):
  given = problems.train_config(output=tmp_path / 'run')
  assert single.run(given, Console(file=io.StringIO()))
  last = given.output / 'checkpoints' / str(given.steps)
  for file in last.rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(b'')
  with pytest.raises(SystemExit) as stop:
    cli.main(
      ['sharpness', str(given.output), '--output', str(tmp_path / 'out')]
    )
  assert stop.value.code == 2
  captured = capsys.readouterr()
  assert f'checkpoint of step {given.steps} is damaged' in captured.out
  assert 'has lost the checkpoint' in captured.err
  assert last.exists()
  assert not (tmp_path / 'out').exists()
