import dataclasses
import io
import json
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from optax_sam import landscape
from optax_sam.train.commands import compare, timing
from optax_sam.train.loop import task
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import registry
from optax_sam.train.reports import comparison_report
from tests.train import problems

STRICT = False  # Flax promotes ranks


def run(config, command=''):
  text = io.StringIO()
  comparison = compare.run(config, Console(file=text, width=200), command)
  return comparison, text.getvalue()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  config = problems.compare_config(
    methods=('ae_sam', 'k_sam'),
    seeds=2,
    timing_rounds=2,
    label_noise=0.1,
    set=('k_sam.rho=0.1',),
    output=tmp_path_factory.mktemp('compare') / 'report',
  )
  return config, *run(config, 'optax-sam compare ...')


def test_every_method_runs_with_every_seed(small):
  _, comparison, _ = small
  assert [(run.seed, run.method) for run in comparison.runs] == [
    (seed, method) for seed in (0, 1) for method in ('sgd', 'ae_sam', 'k_sam')
  ]
  assert not comparison.interrupted
  assert all(comparison.is_complete(run) for run in comparison.runs)
  for run in comparison.runs:
    assert set(run.sharpness) == {'sam_sharpness', 'top_eigenvalue'}


def test_the_landscape_is_that_of_the_first_seed(small):
  config, comparison, _ = small
  for run in comparison.runs:
    assert bool(run.landscape) == (run.seed == 0)
  problem = task.build(config)
  trainer = Trainer(config, problem, 'sgd', {})
  current = trainer.start(0)
  trainer.run(current, 0)
  params = current.state.params
  batch = jax.device_put(problem.inputs.fixed(config.sharpness_examples))
  expected = landscape.line(
    problem.evaluation_loss,
    params,
    landscape.random_direction(params, jax.random.key(0)),
    points=len(comparison.runs[0].landscape),
    args=(current.state.statistics, batch),
  )
  for key, values in zip(('position', 'loss'), expected, strict=True):
    found = [row[key] for row in comparison.runs[0].landscape]
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6)
  assert len({run.landscape[0]['loss'] for run in comparison.runs[:3]}) == 3


def test_the_landscape_is_in_the_report_and_in_the_numbers(small):
  config, comparison, _ = small
  lines = (config.output / 'metrics.jsonl').read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if row['kind'] == 'landscape']
  assert rows == [
    {'method': run.method, 'seed': 0, 'kind': 'landscape', **row}
    for run in comparison.runs[:3]
    for row in run.landscape
  ]
  page = (config.output / 'report.html').read_text()
  assert 'the 20 examples that sharpness is measured on' in page


def test_settings_of_the_methods_are_recorded(small):
  _, comparison, _ = small
  k_sam = comparison.runs_of('k_sam')[0].settings
  assert k_sam == {'rho': 0.1, 'ascent': 1 / 3, 'descent': 1 / 3}
  assert comparison.runs_of('sgd')[0].settings == {}


def test_every_method_is_timed_relative_to_the_base(small):
  _, comparison, _ = small
  assert [timed.method for timed in comparison.timings] == [
    'sgd',
    'ae_sam',
    'k_sam',
  ]
  for timed in comparison.timings:
    assert len(timed.milliseconds) == len(timed.relative) == 2
    assert all(value > 0 for value in timed.milliseconds)
  assert comparison.timings[0].relative == [1.0, 1.0]


def test_the_output_holds_the_report_and_the_configuration(small):
  config, _, text = small
  assert problems.names(config.output) == compare.FILES
  content = json.loads((config.output / 'config.json').read_text())
  assert content['settings']['label_noise'] == 0.1
  assert str(config.output / 'report.html') in text


def test_nothing_but_the_output_is_left(small):
  config, _, _ = small
  assert problems.names(config.output.parent) == {config.output.name}


def test_progress_is_plain_lines_without_a_terminal(small):
  _, comparison, text = small
  lines = text.splitlines()
  for phase in ('Compiling', 'Training', 'Timing'):
    assert phase in lines
  assert '\x1b' not in text
  assert sum('test accuracy' in line for line in lines) >= len(comparison.runs)


def test_the_same_comparison_gives_the_same_numbers(small, tmp_path):
  config, comparison, _ = small
  again, _ = run(
    dataclasses.replace(
      config, output=tmp_path / 'again', seeds=1, timing_rounds=0
    )
  )
  for one, two in zip(again.runs, comparison.runs[:3], strict=True):
    assert one.evaluations == two.evaluations
    assert one.sharpness == two.sharpness
    assert one.landscape == two.landscape


def test_a_setting_that_follows_the_accuracy_is_timed_and_reported(
  tmp_path, monkeypatch
):
  measured = {}
  inner = timing.measure

  def measure(trainers, starts, **options):
    measured.update(starts)
    return inner(trainers, starts, **options)

  monkeypatch.setattr(timing, 'measure', measure)
  config = problems.compare_config(
    methods=('ordered_sgd',),
    steps=40,
    batch_size=100,
    timing_rounds=1,
    output=tmp_path / 'out',
  )
  comparison, _ = run(config)
  starts = measured['ordered_sgd']
  assert tuple(start.step for start in starts) == timing.points(40)
  rule = registry.METHODS['ordered_sgd'].defaults['k']
  values = [rule.at(start.best_train_accuracy) for start in starts]
  log = comparison.runs_of('ordered_sgd')[0].log
  # The row of step n, at position n - 1, tells what that step was taken with.
  assert values == [log[start.step]['setting_k'] for start in starts]
  assert values[0] > values[-1]
  assert f'k = {rule}' in (tmp_path / 'out' / 'report.html').read_text()


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'methods': ('adam',)}, 'adam'),
    ({'methods': ('adamw',)}, 'adamw'),
    ({'set': ('sam.rho=wide',)}, 'must be a number'),
    ({'set': ('sam.rho=-1',)}, 'sam: rho'),
    ({'methods': ('swad',), 'set': ('swad.tolerance=-1',)}, 'swad: tolerance'),
    ({'batch_size': 1001}, '--batch-size must be at most 1000'),
    ({'sharpness_examples': 1001}, '--sharpness-examples'),
    ({'steps': 0}, '--steps'),
  ],
)
def test_bad_input_is_refused_before_training(
  changes, named, tmp_path, monkeypatch
):
  monkeypatch.setattr(compare, 'Trainer', None)
  config = problems.compare_config(output=tmp_path / 'out', **changes)
  with pytest.raises(ValueError, match=named):
    run(config)
  assert not problems.names(tmp_path)


def test_an_existing_output_is_refused_before_training(tmp_path, monkeypatch):
  monkeypatch.setattr(compare, 'Trainer', None)
  (tmp_path / 'precious').write_text('mine')
  for overwrite in (False, True):
    config = problems.compare_config(output=tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match='--output'):
      run(config)
  assert problems.names(tmp_path) == {'precious'}


@pytest.fixture
def heeded_interrupts():
  """A process that a shell has put into the background ignores Ctrl-C."""
  former = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, former)


def interrupt_at(monkeypatch, calls):
  original, count = Trainer.start, []

  def start(self, seed):
    count.append(seed)
    if len(count) == calls:
      os.kill(os.getpid(), signal.SIGINT)
    return original(self, seed)

  monkeypatch.setattr(Trainer, 'start', start)


@pytest.mark.usefixtures('heeded_interrupts')
def test_ctrl_c_reports_the_finished_runs(tmp_path, monkeypatch):
  interrupt_at(monkeypatch, 4)  # after two compilations and one run
  config = problems.compare_config(output=tmp_path / 'out')
  comparison, text = run(config)
  assert comparison.interrupted
  assert [run.method for run in comparison.runs] == ['sgd']
  assert 'Interrupted; finished runs: 1.' in text
  assert problems.names(tmp_path / 'out') == compare.FILES


@pytest.mark.usefixtures('heeded_interrupts')
def test_ctrl_c_before_any_run_writes_nothing(tmp_path, monkeypatch):
  interrupt_at(monkeypatch, 1)
  with pytest.raises(KeyboardInterrupt):
    run(problems.compare_config(output=tmp_path / 'out'))
  assert not problems.names(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
  def write_report(_, directory):
    (directory / 'results.csv').write_text('half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(comparison_report, 'write_report', write_report)
  config = problems.compare_config(methods=(), output=tmp_path / 'out')
  with pytest.raises(OSError, match='No space'):
    run(config)
  assert not problems.names(tmp_path)
