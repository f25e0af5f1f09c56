import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from optax_sam.train.commands import compare
from optax_sam.train.comparison import store, threads, timing
from optax_sam.train.loop.trainer import Trainer
from tests.train import problems
from tests.train.comparison.test_runs import assert_has

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')


def run(config, command=''):
  text = io.StringIO()
  comparison = compare.run(config, Console(file=text, width=200), command)
  return comparison, text.getvalue()


@pytest.fixture(scope='module')
def small(tmp_path_factory, quick_eigenvalues):
  del quick_eigenvalues
  config = problems.compare_config(
    methods=('k_sam',),
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
    (seed, method) for seed in (0, 1) for method in ('sgd', 'k_sam')
  ]
  assert not comparison.interrupted
  assert all(run.steps == 12 for run in comparison.runs)
  for run in comparison.runs:
    assert set(run.sharpness) == {'sam_sharpness', 'top_eigenvalue'}
    assert bool(run.landscape) == (run.seed == 0)
  k_sam = comparison.runs_of('k_sam')[0].settings
  assert k_sam == {'rho': 0.1, 'ascent': 1 / 3, 'descent': 1 / 3}
  assert comparison.runs_of('sgd')[0].settings == {}
  # Times are relative to the base.
  timings = comparison.timings
  assert [one.method for one in timings] == ['sgd', 'k_sam']
  assert all(value > 0 for one in timings for value in one.milliseconds)
  assert timings[0].relative == [1.0, 1.0]


def test_the_output_has_report_and_configuration(small):
  config, _, text = small
  assert problems.names(config.output) == store.FILES - {'trials'}
  assert problems.names(config.output.parent) == {config.output.name}
  content = json.loads((config.output / 'config.json').read_text())
  assert content['settings']['label_noise'] == 0.1
  assert str(config.output / 'report.html') in text


def test_the_same_comparison_gives_the_same_numbers(small, tmp_path):
  config, comparison, _ = small
  less = {'output': tmp_path / 'again', 'seeds': 1, 'timing_rounds': 0}
  again, _ = run(dataclasses.replace(config, **less))
  assert_has(comparison, again)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'methods': ('adamw',)}, 'adamw'),
    ({'set': ('sam.rho=-1',)}, 'sam.rho=-1: rho must be above 0'),
    ({'batch_size': 1001}, '--batch-size must be at most 1000'),
    ({'sharpness_examples': 1001}, '--sharpness-examples'),
    ({'methods': ('swad',), 'batch_size': 950}, 'at most 900, the number'),
    ({'output': 'precious'}, '--output'),
    ({'output': 'precious', 'overwrite': True}, '--output'),
  ],
)
def test_bad_input_is_refused_before_training(
  changes, named, tmp_path, monkeypatch
):
  monkeypatch.setattr(Trainer, 'run', None)
  (tmp_path / 'precious').mkdir()
  (tmp_path / 'precious' / 'file').touch()
  config = problems.compare_config(**({'output': 'out'} | changes))
  config = dataclasses.replace(config, output=tmp_path / config.output)
  with pytest.raises(ValueError, match=named):
    run(config)
  assert problems.names(tmp_path) == {'precious'}
  assert problems.names(tmp_path / 'precious') == {'file'}


def test_a_run_that_diverges_is_reported_and_the_others_continue(
  tmp_path, monkeypatch
):
  original = Trainer._log_row

  def row(self, progress, metrics):
    lost = {'loss': math.nan} if self.name == 'sam' else {}
    return original(self, progress, metrics) | lost

  monkeypatch.setattr(Trainer, '_log_row', row)
  config = problems.compare_config(
    methods=('sam', 'asam'), timing_rounds=1, output=tmp_path / 'out'
  )
  comparison, text = run(config)
  sgd, sam, asam = comparison.runs
  assert (sgd.stopped, asam.stopped) == ('', '')
  assert sgd.steps == asam.steps == 12
  assert sam.diverged
  assert 'not finite' in sam.stopped
  assert 'sam, seed 0: diverged at step 2 of 12: the loss is not fin' in text


def test_a_comparison_with_search_and_budget(tmp_path):
  config = problems.compare_config(
    tune=(),
    trials=2,
    validation=0.5,
    budget='gradients',
    output=tmp_path / 'out',
  )
  comparison, text = run(config)
  sgd, sam = comparison.runs
  assert comparison.budget == 'gradients'
  assert len(comparison.trials) == 4
  assert sam.settings['rho'] in {
    trial.settings['rho'] for trial in comparison.trials[2:]
  }
  assert set(sgd.settings) == {'learning_rate'}
  assert sam.steps == 12
  assert 22 <= sgd.steps <= 25
  # The costs of whole runs are equal, but for the rounding of the steps.
  ends = [one.evaluations[-1]['gradients'] for one in (sgd, sam)]
  assert ends[0] == pytest.approx(ends[1], rel=0.05)
  assert 'sgd: learning_rate=' in text
  assert f'Steps at equal gradients: sgd {sgd.steps}, sam 12' in text


def interrupt_at(monkeypatch, number):
  """Raises KeyboardInterrupt at the start with this number."""
  original, started = Trainer.start, []

  def start(self, seed):
    started.append(seed)
    if len(started) == number:
      raise KeyboardInterrupt
    return original(self, seed)

  monkeypatch.setattr(Trainer, 'start', start)


def test_ctrl_c_reports_the_finished_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(threads, 'workers', lambda: 1)
  interrupt_at(monkeypatch, 4)  # after two compilations and one run
  config = problems.compare_config(output=tmp_path / 'out')
  comparison, text = run(config)
  assert comparison.interrupted
  assert [run.method for run in comparison.runs] == ['sgd']
  assert 'Interrupted; finished runs: 1.' in text
  assert problems.names(tmp_path / 'out') == store.FILES - {'trials'}


def test_ctrl_c_before_any_run_writes_nothing(tmp_path, monkeypatch):
  interrupt_at(monkeypatch, 1)
  with pytest.raises(KeyboardInterrupt):
    run(problems.compare_config(output=tmp_path / 'out'))
  assert not problems.names(tmp_path)


@dataclasses.dataclass(frozen=True)
class Named:
  name: str
  temporary_bytes: int = 7


def test_timing_alternates_methods_and_is_relative_within_a_round(monkeypatch):
  turns = []

  def turn(trainer, start):
    turns.append((trainer.name, start))
    return 2.0 if trainer.name == 'sgd' else 1.0

  monkeypatch.setattr(timing, '_turn', turn)
  found = timing.measure(
    {name: Named(name) for name in ('sgd', 'sam')},
    {'sgd': [0, 1], 'sam': [2, 3]},
    base='sgd',
    rounds=3,
  )
  one_round = [('sgd', 0), ('sam', 2), ('sgd', 1), ('sam', 3)]
  assert turns == 4 * one_round  # with the warm-up round
  assert [timing.method for timing in found] == ['sgd', 'sam']
  assert found[0].relative == [1.0] * 3
  assert found[1].relative == [0.5] * 3
  assert found[1].milliseconds == [1000 / timing.STEPS_A_TURN] * 3
  assert found[1].temporary_bytes == 7
