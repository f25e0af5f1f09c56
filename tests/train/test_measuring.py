import csv
import dataclasses
import io
import math
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

import optax_sam
from optax_sam import landscape
from optax_sam.train import cli
from optax_sam.train.commands import sharpness, train
from optax_sam.train.config import checks, configs
from optax_sam.train.data import datasets
from optax_sam.train.loop import task
from optax_sam.train.reports import sharpness_report, sharpness_wording
from optax_sam.train.reports.measurements import Measurements
from optax_sam.train.reports.sharpness_page import render_page
from tests.train import problems
from tests.train.test_report import Page
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
    assert train.run(given, Console(file=io.StringIO()))
    found.append(given)
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
  """Both measured: where, the figures, and what was printed."""
  target = tmp_path_factory.mktemp('measured') / 'out'
  return target, *measured(runs, target, rho=0.2, seed=3)


def solution(given):
  """What a run ended with, its loss and the arguments of the loss."""
  progress, _ = arrays(given)
  batch = {
    name: jax.numpy.asarray(values[:64])
    for name, values in datasets.load('digits').train.items()
  }
  args = (progress.state.statistics, batch)
  return progress, task.build(given).evaluation_loss, args


def test_the_figures_are_those_of_the_last_checkpoints(runs, both):
  target, rows, printed = both
  assert [row['run'] for row in rows] == ['sgd', 'sam']
  for row, given in zip(rows, runs, strict=True):
    progress, loss, args = solution(given)
    expected = optax_sam.sharpness.sam_sharpness(
      loss, progress.state.params, 0.2, args=args
    )
    assert float(row['sam_sharpness']) == pytest.approx(expected, rel=1e-3)
    accuracy = progress.evaluations[-1]['test_accuracy']
    assert float(row['test_accuracy']) == accuracy
    assert float(row['eigenvalue_1']) >= float(row['eigenvalue_2'])
    assert np.isfinite(
      [float(row[name]) for name in row if name != 'run']
    ).all()
    assert f'{accuracy:.4g}' in printed
  assert problems.names(target) == sharpness_report.FILES
  assert str(target / 'report.html') in printed


def test_the_landscape_is_along_one_direction_through_each_solution(runs, both):
  rows = read(both[0] / 'landscape.csv')
  for given in runs:
    progress, loss, args = solution(given)
    params = progress.state.params
    points = [row for row in rows if row['run'] == given.output.name]
    expected = landscape.line(
      loss,
      params,
      landscape.random_direction(params, jax.random.key(3)),
      points=len(points),
      args=args,
    )
    for key, values in zip(('position', 'loss'), expected, strict=True):
      found = [float(row[key]) for row in points]
      np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6)


def test_the_page_says_what_was_measured_on_what_and_how(both):
  target, rows, _ = both
  text = (target / 'report.html').read_text('utf-8')
  page = Page(text)  # which fails on wrong nesting
  for said in (
    'Sharpness of 2 finished runs',
    'sgd and sam on digits with the model mlp',
    'the first 64 training examples',
    'radius 0.2, 20 steps',
    'rho = 0.05',  # of SAM, where the runs differ
    'optax-sam sharpness <these>',
    'jax',
    'processor',
    'A larger number is sharper.',
    'A flatter minimum is not by itself a better model',
  ):
    assert said in page.text
  for row in rows:
    for key in ('sam_sharpness', 'adaptive_sharpness', 'eigenvalue_2'):
      value = f'{float(row[key]):.3g}'.replace('-', '\N{MINUS SIGN}')
      assert value in page.text
  differing = text.split('How the runs differ')[1].split('</table>')[0]
  assert 'method settings' in differing
  assert 'batch size' not in differing
  assert 'batch size' in page.text
  (alternative,) = [x for x in page.values('aria-label') if 'Loss at' in x]
  for point in read(target / 'landscape.csv'):
    if float(point['position']) == 0:
      value = f'{float(point["loss"]):.3g}'
      assert value in alternative


def test_the_page_loads_nothing_and_its_references_lead_somewhere(both):
  text = (both[0] / 'report.html').read_text('utf-8')
  page = Page(text)
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(page.tags)
  assert {x for x in page.values('href') if not x.startswith('#')} == {
    'sharpness.csv',
    'landscape.csv',
    'landscape.png',
  }
  identifiers = page.values('id')
  assert len(identifiers) == len(set(identifiers))
  assert set(page.values('aria-labelledby')) <= set(identifiers)


def made(**figures):
  """Measurements of made runs, by their SAM sharpness or all figures."""
  values = {
    name: {
      'test_accuracy': 0.9,
      'sam_sharpness': 0.1,
      'sam_sharpness_20_steps': 0.2,
      'adaptive_sharpness': 0.3,
      'eigenvalue_1': 4.0,
      'trace': 50.0,
      'trace_standard_error': 3.0,
    }
    | changes
    for name, changes in figures.items()
  }
  positions = np.linspace(-1, 1, 41)
  return Measurements(
    config=configs.SharpnessConfig(runs=(), eigenvalues=1),
    command='optax-sam sharpness',
    settings={
      name: {'dataset': 'digits', 'model': 'cnn', 'seed': 0} for name in values
    },
    figures=values,
    lines={name: landscape.Line(positions, positions**2) for name in values},
    versions={'jax': '0.10.0'},
    machine={'device': 'cpu'},
    started='2025-01-02T03:04:05',
    seconds=1.0,
  )


LOWER = {
  'sam_sharpness': 0.0,
  'sam_sharpness_20_steps': 0.1,
  'adaptive_sharpness': 0.1,
  'eigenvalue_1': 1.0,
}


@pytest.mark.parametrize(
  ('figures', 'said'),
  [
    (
      {'sgd': {}, 'sam': LOWER | {'trace': 10.0}},
      (
        'The flattest is sam by SAM sharpness in 1 step, SAM sharpness in 20'
        ' steps, adaptive sharpness, top eigenvalue and trace.'
      ),
    ),
    # A trace that is lower by less than two standard errors says nothing.
    (
      {'sgd': {'trace': 42.0}, 'sam': {'eigenvalue_1': 3.0}},
      'The flattest is sam by top eigenvalue.',
    ),
    (
      {'sgd': {'trace': 10.0}, 'sam': {'eigenvalue_1': 3.0}, 'asam': {}},
      (
        'Measures differ in which run is the flattest: sam by top eigenvalue;'
        ' sgd by trace.'
      ),
    ),
    ({'sgd': {'eigenvalue_1': math.nan}, 'sam': {}}, None),
    ({'sgd': {}}, None),
  ],
)
def test_findings_claim_no_more_than_the_figures(figures, said):
  found = sharpness_wording.findings(made(**figures))
  assert found[:1] == ([] if said is None else [said])
  if said is not None:
    assert 'Flatness alone does not make a model better' in found[-1]


def test_figures_that_are_not_finite_are_named_and_shown_as_missing(tmp_path):
  nothing = dict.fromkeys(made(sgd={}).figures['sgd'], math.nan)
  lost = made(sgd={}, sam=nothing)
  lines = lost.lines | {
    'sam': landscape.Line(lost.lines['sam'].positions, np.full(41, np.nan))
  }
  lost = dataclasses.replace(lost, lines=lines)
  sharpness_report.write(lost, tmp_path)
  page = Page((tmp_path / 'report.html').read_text('utf-8'))
  assert 'not finite or were not found: sam (test accuracy, ' in page.text
  assert not any(word in page.text for word in ('nan', 'inf '))
  (alternative,) = [x for x in page.values('aria-label') if 'Loss at' in x]
  assert 'sam not finite' in alternative
  alone = dataclasses.replace(
    lost,
    figures={'sam': nothing},
    lines={'sam': lines['sam']},
    settings={'sam': lost.settings['sam']},
  )
  sharpness_report.write(alone, tmp_path)
  text = (tmp_path / 'report.html').read_text('utf-8')
  assert 'Loss along one random direction' not in text


def test_names_are_escaped_and_nets_of_two_shapes_are_not_called_alike():
  attack = '<script>alert("&\'$x$")</script>'
  two = made(**{attack: {}, 'sam': {}})
  models = {'sam': two.settings['sam'] | {'model': attack}}
  page = Page(
    render_page(dataclasses.replace(two, settings=two.settings | models))
  )
  assert 'script' not in page.tags
  assert attack in page.text
  assert 'nets of different shapes have different directions' in page.text
  same = Page(render_page(made(sgd={}, sam={})))
  assert 'different shapes' not in same.text
  assert 'They have the same settings.' in same.text


def test_the_command_line_reaches_the_report(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(sharpness, 'run', lambda *given: seen.append(given[2]))
  with pytest.raises(SystemExit) as stop:
    cli.main(['sharpness', str(tmp_path), '--rho', '0.1'])
  assert stop.value.code == 0
  assert seen == [f'optax-sam sharpness {tmp_path} --rho 0.1']


def test_an_iteration_that_does_not_converge_leaves_out_its_figures(
  monkeypatch,
):
  def fail(*_, **__):
    raise RuntimeError

  monkeypatch.setattr(sharpness, 'top_eigenvalues', fail)
  bowl = sharpness._Solution(
    test_accuracy=0.9,
    params={'weights': np.ones(3, np.float32)},
    args=(),
    value_fn=lambda params: (params['weights'] ** 2).sum(),
  )
  figures = sharpness._measure(
    bowl, configs.SharpnessConfig(runs=(), probes=2, eigenvalues=2)
  )
  assert math.isnan(figures['eigenvalue_1'])
  assert math.isnan(figures['eigenvalue_2'])
  assert figures['trace'] == 6.0


def test_a_run_is_called_by_its_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  here = configs.SharpnessConfig(runs=(pathlib.Path(), pathlib.Path('a/b')))
  assert checks.run_names(here) == [tmp_path.name, 'b']


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
  assert train.run(noisy, Console(file=io.StringIO()))
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
  assert train.run(given, Console(file=io.StringIO()))
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
