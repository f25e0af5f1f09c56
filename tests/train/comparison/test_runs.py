import dataclasses
import io
import os
import signal
import time

import numpy as np
import pytest
from rich.console import Console

from optax_sam.train.commands import compare
from optax_sam.train.comparison import store, timing
from optax_sam.train.config import configs
from optax_sam.train.loop.trainer import Trainer
from tests.train import problems

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')


def run(config, command=''):
  text = io.StringIO()
  comparison = compare.run(config, Console(file=text, width=200), command)
  return comparison, text.getvalue()


def config_of(target, **changes):
  few = {'methods': ('sam',), 'seeds': 2, 'steps': 6}
  return problems.compare_config(**({'output': target} | few | changes))


def numbers(comparison):
  """Everything of the runs but the time that they took."""

  def timeless(rows):
    return [{k: x for k, x in row.items() if k != 'seconds'} for row in rows]

  return {
    (run.method, run.seed): dataclasses.asdict(
      dataclasses.replace(
        run,
        seconds=0.0,
        log=timeless(run.log),
        evaluations=timeless(run.evaluations),
      )
    )
    for run in comparison.runs
  }


def assert_has(found, expected):
  """Raises unless `found` has all runs of `expected`, which are the same."""
  known, wanted = numbers(found), numbers(expected)
  np.testing.assert_equal({key: known[key] for key in wanted}, wanted)


def assert_same(found, expected):
  np.testing.assert_equal(numbers(found), numbers(expected))
  np.testing.assert_equal(found.planes, expected.planes)
  np.testing.assert_equal(found.spectra, expected.spectra)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, quick_eigenvalues):
  """Two methods, two seeds, as they are read from the directory."""
  del quick_eigenvalues
  target = tmp_path_factory.mktemp('whole') / 'out'
  run(config_of(target))
  return store.read(target)


@pytest.fixture
def trained(monkeypatch):
  """The runs that are trained, as (method, seed)."""
  original, found = Trainer.run, []

  def recorded(self, progress, seed, after_step):
    found.append((self.name, seed))
    return original(self, progress, seed, after_step)

  monkeypatch.setattr(Trainer, 'run', recorded)
  return found


def at_run(monkeypatch, number, act):
  """Calls `act` in the middle of the run with this number."""
  original, runs = Trainer.run, []

  def changed(self, progress, seed, after_step):
    runs.append(seed)

    def acting(current):
      if runs[number - 1 :] == [seed] and current.step == 3:
        act()
      after_step(current)

    return original(self, progress, seed, acting)

  monkeypatch.setattr(Trainer, 'run', changed)


def one_at_a_time(monkeypatch):
  monkeypatch.setattr('optax_sam.train.comparison.threads.workers', lambda: 1)


def interrupt():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(1)  # the main thread handles it


def test_after_ctrl_c_the_same_command_continues(
  tmp_path, monkeypatch, uninterrupted, trained
):
  one_at_a_time(monkeypatch)
  config = config_of(tmp_path / 'out')
  with monkeypatch.context() as patch:
    at_run(patch, 3, interrupt)
    comparison, text = run(config)
  assert comparison.interrupted
  assert len(comparison.runs) == 2
  assert 'Interrupted; finished runs: 2.' in text
  last = text.splitlines()[-1]
  assert last.endswith(f'optax-sam compare --output {config.output}')
  assert problems.names(config.output) == store.FILES - {'trials'}
  assert store.read(config.output).interrupted
  # The command of the last line gives only the output.
  trained.clear()
  comparison, _ = run(configs.CompareConfig(output=config.output))
  # The best method and the base need the solution of seed 0.
  assert trained[:2] == [('sgd', 1), ('sam', 1)]
  assert not comparison.interrupted
  assert_same(store.read(config.output), uninterrupted)


def test_a_finished_comparison_trains_nothing(tmp_path, trained):
  config = config_of(tmp_path / 'out', seeds=1)
  first, _ = run(config)
  trained.clear()
  again, _ = run(config)
  assert not trained
  assert_same(again, first)
  with pytest.raises(ValueError, match='steps was 6 and is now 7'):
    run(dataclasses.replace(config, steps=7))
  again, _ = run(dataclasses.replace(config, steps=7, overwrite=True))
  assert again.total_steps == 7


def test_a_full_disk_loses_only_the_runs_in_progress(
  tmp_path, monkeypatch, uninterrupted, trained
):
  one_at_a_time(monkeypatch)
  config = config_of(tmp_path / 'out')
  original = store.Store.add

  def add(self, run):
    if len(self.runs) == 1:
      monkeypatch.setattr(os, 'replace', full)
    original(self, run)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(store.Store, 'add', add)
    with pytest.raises(OSError, match=r'No space.*sam-0\.json'):
      run(config)
  monkeypatch.setattr(os, 'replace', os.rename)
  assert problems.names(config.output / 'runs') == {'sgd-0.json'}
  trained.clear()
  comparison, _ = run(config)
  assert ('sgd', 0) not in trained[:3]
  assert_same(comparison, uninterrupted)


def test_added_seeds_and_methods_equal_those_from_the_start(
  tmp_path, monkeypatch, uninterrupted, trained
):
  target = tmp_path / 'out'
  run(
    config_of(target, methods=('sam',), seeds=1, set=('sam.rho=0.05',)), 'first'
  )
  adding = configs.CompareConfig(
    output=target,
    add_seeds=1,
    add_methods=('asam',),
    set=('asam.rho=0.5',),
  )
  one_at_a_time(monkeypatch)
  with monkeypatch.context() as patch:
    at_run(patch, 2, interrupt)
    assert run(adding, 'add')[0].interrupted
  trained.clear()
  comparison, _ = run(adding, 'add')  # adds no second time
  assert comparison.command == 'first && add'
  assert comparison.seeds == [0, 1]
  assert comparison.methods == ['sgd', 'sam', 'asam']
  assert {run.settings['rho'] for run in comparison.runs_of('asam')} == {0.5}
  assert_has(comparison, uninterrupted)
  # Now it is finished: the same flags add again.
  comparison, _ = run(dataclasses.replace(adding, add_methods=(), set=()))
  assert comparison.seeds == [0, 1, 2]


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'add_seeds': 1}, 'there is no comparison in'),
    ({'add_seeds': -1}, '--add-seeds must be at least 0'),
    ({'add_methods': ('asam',), 'output': None}, 'there is no comparison in'),
  ],
)
def test_adding_without_a_comparison_is_refused(tmp_path, changes, named):
  with pytest.raises(ValueError, match=named):
    run(config_of(tmp_path / 'out', **changes))
  assert not problems.names(tmp_path)


def test_adding_with_other_settings_is_refused(tmp_path, trained):
  config = config_of(tmp_path / 'out', seeds=1)
  run(config)
  trained.clear()
  for changes, named in (
    ({'steps': 7, 'add_seeds': 1}, 'steps was 6 and is now 7'),
    ({'set': ('sam.rho=1',), 'add_methods': ('asam',)}, 'rho was 0.05'),
  ):
    with pytest.raises(ValueError, match=named):
      run(dataclasses.replace(config, **changes))
  assert not trained


def test_other_data_are_refused(tmp_path, monkeypatch):
  config = config_of(tmp_path / 'out', seeds=1)
  run(config)
  describe = store.describe
  monkeypatch.setattr(
    store, 'describe', lambda task: describe(task) | {'checksum': 0}
  )
  with pytest.raises(ValueError, match='data and model: checksum was'):
    run(config)


def test_steps_are_timed_once(tmp_path, monkeypatch):
  calls = []

  def measure(trainers, starts, *, base, rounds):
    del rounds
    assert set(starts) == set(trainers)
    assert base in trainers
    calls.append(list(trainers))
    return [timing.Timing(name, [1.0], [1.0], None) for name in trainers]

  monkeypatch.setattr(timing, 'measure', measure)
  config = config_of(tmp_path / 'out', seeds=1, timing_rounds=2)
  run(config)
  run(config)
  comparison, _ = run(dataclasses.replace(config, add_methods=('asam',)))
  assert calls == [['sgd', 'sam'], ['sgd', 'asam']]
  assert [one.method for one in comparison.timings] == ['sgd', 'sam', 'asam']
