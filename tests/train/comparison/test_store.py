import dataclasses
import json
import math
import os

import numpy as np
import pytest

from optax_sam.train.comparison import store
from optax_sam.train.config import configs, output_dir
from optax_sam.train.data import inputs
from optax_sam.train.reports.results import Trial
from tests.train import problems
from tests.train.reports import comparisons

SETTINGS = configs.settings(configs.CompareConfig(steps=20, methods=('sam',)))
TRIAL = Trial('sam', {'rho': 0.1}, 0, math.inf, math.nan)


def opened(target, settings=None, **how):
  return store.opened(target, settings or SETTINGS, **how)


def filled(target, comparison):
  """Stores a comparison."""
  methods = {name: {} for name in comparison.methods}
  steps = dict.fromkeys(methods, 20)
  rest = dataclasses.replace(comparison, runs=[])
  with opened(target) as stored:
    stored.save(store.Record(methods, steps, {}, rest))
    stored.add_trial(TRIAL)
    for run in comparison.runs:
      stored.add(run)


@pytest.fixture
def target(tmp_path):
  """A stored comparison in an otherwise empty directory."""
  filled(tmp_path / 'out', comparisons.usual())
  yield tmp_path / 'out'
  assert problems.names(tmp_path) == {'out'}


@pytest.mark.parametrize('name', ['usual', *comparisons.ODD])
def test_a_comparison_is_read_as_it_was_stored(tmp_path, name):
  given = comparisons.ODD.get(name) or comparisons.usual()
  given = dataclasses.replace(
    given, planes={'sam': [{'x': 0.1, 'y': math.inf, 'loss': math.nan}]}
  )
  filled(tmp_path / 'out', given)
  found = store.read(tmp_path / 'out')
  by_key = lambda run: (run.seed, given.methods.index(run.method))
  trials = [TRIAL] if 'sam' in given.methods else []
  expected = dataclasses.replace(
    given, runs=sorted(given.runs, key=by_key), trials=trials
  )
  np.testing.assert_equal(*map(dataclasses.asdict, (found, expected)))


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('runs/sam-1.json', '{"method": "sam"'),
    ('runs/sam-1.json', '[' * 100_000),
    ('runs/sam-1.json', '{"method": "sam", "seed": "x"}'),
    ('runs/sam-1.json', '{"method": "sam", "seed": 1}'),
    ('comparison.json', '{"steps": 1}'),
    ('comparison.json', '\udcff'),
  ],
)
def test_a_damaged_file_is_named_in_one_line(target, file, text):
  (target / file).write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(ValueError, match='damaged') as error:
    store.read(target)
  assert str(target / file) in str(error.value)
  assert '\n' not in str(error.value)


def test_a_renamed_run_is_refused(target):
  (target / 'runs/sam-1.json').rename(target / 'runs/sam-3.json')
  with pytest.raises(ValueError, match=r'sam-3\.json is of sam, seed 1'):
    store.read(target)


def test_a_trial_does_not_replace_another_after_one_was_removed(target):
  with opened(target) as stored:
    for rho in (0.2, 0.3):
      trial = dataclasses.replace(TRIAL, settings={'rho': rho})
      stored.add_trial(trial)
  (target / 'trials/00001.json').unlink()
  with opened(target) as stored:
    stored.add_trial(dataclasses.replace(TRIAL, settings={'rho': 0.4}))
  found = [trial.settings['rho'] for trial in store.Store(target).trials]
  assert found == [0.1, 0.3, 0.4]


def test_other_directories_are_not_comparisons(tmp_path):
  with pytest.raises(ValueError, match='not an output of'):
    store.read(tmp_path)
  output_dir.write_config(tmp_path, 'compare', {})
  with pytest.raises(ValueError, match='no finished runs'):
    store.read(tmp_path)


def test_other_settings_are_refused_with_what_differs(target):
  content = json.loads((target / 'config.json').read_text())
  del content['settings']['seeds']
  (target / 'config.json').write_text(json.dumps(content))
  now = SETTINGS | {'steps': 30}
  with (
    pytest.raises(ValueError, match='steps was 20 and is now 30;') as error,
    opened(target, now),
  ):
    raise AssertionError
  # Of a setting that is younger than the comparison, the default counts.
  assert 'seeds' not in str(error.value)
  assert len(store.read(target).runs) == len(comparisons.usual().runs)


def test_overwrite_starts_again(target):
  (target / '.report.html.unfinished').touch()  # of a killed process
  with opened(target, {'steps': 30}, overwrite=True) as stored:
    assert not stored.runs
  assert problems.names(target) == {'.lock', 'config.json'}
  (target / 'notes.txt').touch()
  with (
    pytest.raises(ValueError, match=r"contains 'notes\.txt'"),
    opened(target, overwrite=True),
  ):
    raise AssertionError


def test_a_second_process_is_refused(target):
  with (
    opened(target),
    pytest.raises(ValueError, match='written by another optax-sam'),
    opened(target),
  ):
    raise AssertionError


def test_a_target_that_appears_meanwhile_is_refused(tmp_path, monkeypatch):
  target, original = tmp_path / 'out', output_dir.created

  def created(directory):
    directory.mkdir()
    (directory / 'notes.txt').touch()
    return original(directory)

  monkeypatch.setattr(output_dir, 'created', created)
  with pytest.raises(ValueError, match='exists'), opened(target):
    raise AssertionError
  assert problems.names(target) <= {'notes.txt', '.lock'}


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_an_output_without_finished_runs_is_removed(tmp_path, error):
  with pytest.raises(error), opened(tmp_path / 'a' / 'b'):
    raise error
  assert not problems.names(tmp_path)


@pytest.mark.parametrize('failing', ['replace', 'fsync'])
def test_after_a_full_disk_finished_runs_are_kept(target, monkeypatch, failing):
  before = problems.names(target / 'runs')

  def full(*_):
    raise OSError(28, 'No space left on device')

  with opened(target) as stored:
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match='No space left') as error:
      stored.add(comparisons.run('sam', 3, 0.9))
    assert error.value.filename == str(target / 'runs/sam-3.json')
    monkeypatch.undo()
  assert problems.names(target / 'runs') == before


def test_trials_are_stored_once(tmp_path):
  trials = [TRIAL, dataclasses.replace(TRIAL, seed=1)]
  with opened(tmp_path / 'out') as stored:
    for trial in trials:
      stored.add_trial(trial)
  with opened(tmp_path / 'out') as stored:
    np.testing.assert_equal(
      *(list(map(vars, x)) for x in (stored.trials, trials))
    )


def test_other_data_or_models_have_another_description():
  small = problems.small_task('mlp', 50)
  described = store.describe(small)
  assert described == store.describe(problems.small_task('mlp', 60))
  assert described != store.describe(problems.small_task('cnn', 50))
  data = small.inputs.dataset
  labels = (data.train['labels'] + 1) % 10
  data = dataclasses.replace(data, train={**data.train, 'labels': labels})
  other = dataclasses.replace(small, inputs=inputs.InMemory(data, 50))
  assert described != store.describe(other)
