"""Accidents of `optax-sam train`: one line says what is there."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import compiling

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, '-m', 'optax_sam.train.cli', 'train')
SMALL = (
  *('--model', 'mlp', '--batch-size', '8', '--evaluations', '1'),
  *('--sharpness-examples', '8', '--checkpoint-every', '5', '--steps', '40'),
)
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole') / 'run'
  assert ended(start(*SMALL, '--output', path))[0] == 0
  return path


@pytest.fixture
def copy(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'run')


def start(*arguments, shell='', **how):
  how = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | how
  environment = os.environ | compiling.environment()
  environment['PYTHONPATH'] = str(ROOT)
  arguments = ['sh', '-c', f'{shell} exec "$@"', 'sh', *COMMAND, *arguments]
  arguments = [str(argument) for argument in arguments]
  return subprocess.Popen(arguments, env=environment, text=True, **how)


def ended(process):
  """Returns the status of a process, and its lines."""
  out, error = process.communicate(timeout=200)
  return process.returncode, (out or '').splitlines(), error or ''


def again(path):
  """Resumes a run to its end and returns its metrics."""
  status, out, error = ended(start('--output', path, '--resume'))
  assert (status, error) == (0, ''), (out, error)
  return (path / 'metrics.jsonl').read_bytes()


def test_a_closed_or_full_standard_output_does_not_end_a_run(tmp_path, whole):
  closed = start(*SMALL, '--output', tmp_path / 'a')
  closed.stdout.close()
  closed.stdout = None
  assert ended(closed) == (0, [], '')
  with pathlib.Path('/dev/full').open('w') as full:
    never = start(*SMALL, '--output', tmp_path / 'b', stdout=full)
    assert ended(never) == (0, [], '')
  absent = start(*SMALL, '--output', tmp_path / 'c', shell='exec >&-;')
  assert ended(absent) == (0, [], '')
  expected = (whole / 'metrics.jsonl').read_bytes()
  for name in 'abc':
    assert (tmp_path / name / 'metrics.jsonl').read_bytes() == expected


def test_a_full_disk_gives_one_line_with_the_saved_files(copy, tmp_path):
  limited = {'shell': 'ulimit -f 100;'}
  more = ('--output', copy, '--resume', '--steps', '80')
  status, _, error = ended(start(*more, **limited))
  assert status == 2
  assert error.count('\n') == 1
  assert 'File too large' in error
  assert 'has checkpoints of steps 30, 35, 40; continue with: ' in error
  again(copy)
  new = ('--output', tmp_path / 'new')
  status, _, error = ended(start(*SMALL, *new, **limited))
  assert (status, error.count('\n')) == (2, 1)
  assert not (tmp_path / 'new').exists()


def test_metadata_that_is_cut_is_a_damaged_checkpoint_in_one_line(copy, whole):
  path = copy / 'checkpoints/40/state/array_metadatas/process_0'
  os.truncate(path, 20)
  status, out, error = ended(start('--output', copy, '--resume'))
  assert (status, error) == (0, '')
  assert out[0].startswith('The checkpoint of step 40 is damaged: ')
  assert out[1] == 'Resuming from the checkpoint of step 35.'
  expected = (whole / 'metrics.jsonl').read_bytes()
  assert (copy / 'metrics.jsonl').read_bytes() == expected


def test_of_two_commands_on_one_run_the_second_is_refused(copy, whole):
  shutil.rmtree(copy / 'checkpoints/40')
  two = [start('--output', copy, '--resume') for _ in range(2)]
  found = sorted(ended(one) for one in two)
  assert [status for status, *_ in found] == [0, 2]
  assert 'is being written by another optax-sam' in found[1][2]
  assert found[1][2].count('\n') == 1
  expected = (whole / 'metrics.jsonl').read_bytes()
  assert (copy / 'metrics.jsonl').read_bytes() == expected


@pytest.mark.parametrize(
  ('sent', 'lines'),
  [
    (signal.SIGINT, ('Compiling', '  step 40')),
    (signal.SIGTERM, ('Training',)),
  ],
)
def test_a_signal_at_a_random_moment(sent, lines, whole, tmp_path):
  draw = random.Random(int(sent))
  expected = (whole / 'metrics.jsonl').read_bytes()
  for line in lines:
    output = tmp_path / line.split()[0]
    process = start(*SMALL, '--output', output)
    while not process.stdout.readline().startswith(line):
      assert process.poll() is None
    time.sleep(draw.random() / 2)
    process.send_signal(sent)
    status, out, error = ended(process)
    assert error == ''
    if status != 0:
      assert status == 130
      assert out[-1].startswith('Interrupted after step')
      assert out[-1].endswith(f'train --output {output} --resume')
      again(output)
    assert (output / 'metrics.jsonl').read_bytes() == expected
