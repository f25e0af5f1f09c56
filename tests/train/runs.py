"""Helpers to start, interrupt, resume and compare runs of `optax-sam`."""

import dataclasses
import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from optax_sam.train import cli
from optax_sam.train.commands import train
from optax_sam.train.loop import checkpoints, task
from optax_sam.train.loop.trainer import Trainer


def call(*arguments):
  """Returns the exit status of `optax-sam`."""
  with pytest.raises(SystemExit) as stop:
    cli.main([str(argument) for argument in arguments])
  return stop.value.code


def refused(capsys, *arguments):
  """Returns the one line that a command prints for invalid input."""
  assert call(*arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith('optax-sam: error: ')
  assert captured.err.count('\n') == 1
  return captured.err


def run(config):
  """Trains; returns whether the run is finished, and its output."""
  text = io.StringIO()
  finished = train.run(config, Console(file=text, width=200))
  return finished, text.getvalue()


def resume(config):
  """Finishes a run; returns its output."""
  finished, text = run(dataclasses.replace(config, resume=True))
  assert finished
  return text


def interrupt(config, step, sent=signal.SIGINT):
  """Trains until a signal arrives in the middle of a step."""
  original = Trainer.batch

  def batch(self, **position):
    if position['step'] == step - 1:
      os.kill(os.getpid(), sent)
    return original(self, **position)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Trainer, 'batch', batch)
    finished, text = run(config)
  assert not finished
  return text


def metrics(config):
  """Returns the rows of `metrics.jsonl`."""
  lines = (config.output / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def arrays(config):
  """Returns the last checkpoint of a run, and all arrays in it."""
  trainer = Trainer(
    config, task.build(config), config.method, train.method_settings(config)
  )
  with checkpoints.Checkpoints(config.output / 'checkpoints', {}) as saved:
    progress = saved.restore(trainer.start(config.seed).state, print)
  leaves = [
    jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else leaf
    for leaf in jax.tree.leaves(progress.state)
  ]
  return progress, [np.asarray(leaf) for leaf in leaves]


def assert_same_end(config, other):
  """Raises unless two finished runs are bit-identical."""
  found_progress, found = arrays(config)
  progress, expected = arrays(other)
  for one, two in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, two)
  assert found_progress.step == progress.step
  np.testing.assert_equal(found_progress.log, progress.log)
  assert found_progress.evaluations == progress.evaluations
  paths = [run.output / 'metrics.jsonl' for run in (config, other)]
  assert paths[0].read_bytes() == paths[1].read_bytes()


def files(directory):
  """Returns the content of all files below a directory."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def damage(config, step):
  """Truncates the largest file of a checkpoint."""
  directory = config.output / 'checkpoints' / str(step)
  largest = max(
    (path for path in directory.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size // 2)


def steps_of(config):
  """Returns the steps of all checkpoints."""
  directory = config.output / 'checkpoints'
  return sorted(
    int(path.name) for path in directory.iterdir() if path.name.isdigit()
  )
