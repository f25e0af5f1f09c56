import dataclasses
import json
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.train.config import output_dir
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Progress, is_due
from tests.train import problems

pytestmark = pytest.mark.usefixtures('muted')
SETTINGS = {'rho': 0.1, 'steps': 12, 'set': ['a', 'b']}


@pytest.fixture(scope='module')
def start():
  return problems.trainer('ss_sam').start(seed=0)


def at(start, step):
  """Returns a progress of which all leaves differ from those of others."""
  params = jax.tree.map(lambda leaf: leaf + step, start.state.params)
  return Progress(
    start.state._replace(params=params), step, log=[{'step': float(step)}]
  )


@pytest.fixture(scope='module')
def saved(start, tmp_path_factory):
  path = tmp_path_factory.mktemp('saved')
  with Checkpoints(path, SETTINGS) as store:
    for step in (1, 2):
      store.save(at(start, step))
  return path


def _bits(progress):
  return [
    np.asarray(
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ).tobytes()
    for leaf in jax.tree.leaves(progress.state)
  ]


def restored(path, start, settings=SETTINGS):
  said = []
  with Checkpoints(path, settings) as store:
    return store.restore(start.state, said.append, goes_on=False), said


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  content = bytearray(path.read_bytes())
  if content:
    content[len(content) // 2] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize('harm', [truncate, flip, lambda path: path.unlink()])
def test_damage_to_any_file_is_noticed_or_harmless(
  harm, saved, start, tmp_path, capfd
):
  files = [path for path in (saved / '2').rglob('*') if path.is_file()]
  assert len(files) > 5
  unharmed = 0
  for number, file in enumerate(files):
    copy = tmp_path / str(number)
    shutil.copytree(saved, copy)
    harm(copy / file.relative_to(saved))
    found, said = restored(copy, start)
    unharmed += not said
    expected = at(start, 1 if said else 2)
    assert _bits(found) == _bits(expected)
    assert found.log == expected.log
    assert all(line.startswith('The checkpoint of step 2 is') for line in said)
    assert sorted(problems.names(copy)) == ['1', '2']
  assert len(files) - unharmed >= 3  # the others are not read
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
  'change',
  [
    {'step': 1},
    {'log': [{'step': 3.0}]},
    {'settings': {'rho': 0.2}},
    {'settings': None},
    {'validations': 'high'},
    {'checksum': None},
    {'more': 1},
  ],
)
def test_a_changed_record_is_a_damaged_checkpoint(
  change, saved, start, tmp_path
):
  shutil.copytree(saved, tmp_path / 'copy')
  path = tmp_path / 'copy' / '2' / 'record' / 'metadata'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  found, (line,) = restored(tmp_path / 'copy', start)
  assert found.step == 1
  assert line == (
    'The checkpoint of step 2 is damaged: it differs from what was saved'
  )


def test_a_checkpoint_of_another_step_is_damaged(saved, start, tmp_path):
  shutil.copytree(saved / '1', tmp_path / '1')
  shutil.copytree(saved / '1', tmp_path / '3')
  found, said = restored(tmp_path, start)
  assert (found.step, len(said)) == (1, 1)


def test_other_settings_are_refused_but_more_steps_are_not(saved, start):
  with pytest.raises(ValueError, match=r'step 2 .* rho was 0\.1 and is now 3;'):
    restored(saved, start, SETTINGS | {'rho': 3})
  found, said = restored(
    saved, start, SETTINGS | {'steps': 99, 'set': ('a', 'b')}
  )
  assert (found.step, said) == (2, [])


def assert_cannot_save(store, progress, size):
  """Saves on a disk where files cannot be larger than `size` bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    store.save(progress)
    with pytest.raises(ValueError, match='a checkpoint cannot be written: '):
      store.__exit__(None)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_is_one_error(
  start, tmp_path, capfd
):
  store = Checkpoints(tmp_path, SETTINGS)
  store.save(at(start, 1))
  store._manager.wait_until_finished()
  assert_cannot_save(store, at(start, 2), size=4096)
  assert capfd.readouterr().err == ''


def test_nothing_is_written_after_a_checkpoint_has_failed(
  start, tmp_path, monkeypatch
):
  run, late = threading.Thread.run, []

  def run_late(thread):
    if thread.name == 'array_type_handler':
      time.sleep(0.5)
      late.append(thread)
    run(thread)

  store = Checkpoints(tmp_path, SETTINGS)
  store.save(at(start, 1))  # compiles
  store._manager.wait_until_finished()
  monkeypatch.setattr(threading.Thread, 'run', run_late)
  assert_cannot_save(store, at(start, 2), size=10)  # the record fails first
  (thread,) = late
  assert not thread.is_alive()
  output_dir.clear(tmp_path.parent, frozenset({tmp_path.name}))
  assert not tmp_path.exists()


def test_rows_added_during_a_write_are_not_in_the_checkpoint(start, tmp_path):
  progress = dataclasses.replace(start, log=[], evaluations=[])
  with Checkpoints(tmp_path, {}) as store:
    for step in range(1, 11):
      progress.step = step
      for rows in (progress.log, progress.evaluations):
        rows.append({'step': float(step)})
      store.save(progress)
      # The background writer reads the record later.
      for rows in (progress.log, progress.evaluations):
        rows.append({'step': -1.0})
        rows.pop(-2)
    found = store.restore(start.state, print)
  assert found.log[-1] == found.evaluations[-1] == {'step': 10.0}


@pytest.mark.parametrize('steps', [1, 2, 7, 60])
@pytest.mark.parametrize('count', [1, 2, 3, 7, 59, 60, 10**9])
def test_evaluations_are_evenly_spaced_and_include_the_last_step(steps, count):
  number = min(count, steps)
  expected = {round(steps * (i + 1) / number) or 1 for i in range(number)}
  found = {s for s in range(steps + 1) if is_due(s, steps, count)}
  assert found == expected
  assert is_due(10**18, 10**18, 10**17)
