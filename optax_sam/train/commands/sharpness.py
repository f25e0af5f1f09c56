"""Compares finished runs: sharpness and loss landscape."""

import contextlib
import dataclasses
import datetime as dt
import functools
import math
import pathlib
import time
from typing import Any

import jax
from rich.console import Console

from optax_sam import sharpness
from optax_sam.train.commands import progress, train
from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.data import datasets
from optax_sam.train.loop import task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.reports import (
  formats,
  random_lines,
  results,
  sharpness_report,
)

# Settings that must agree for the numbers to be comparable.
_DATA = ('dataset', 'label_noise', 'image_size')
_VECTORS = 20


def run(
  config: configs.SharpnessConfig, console: Console, command: str = ''
) -> None:
  """Measures finished runs of `optax-sam train` and writes a report.

  Raises:
    ValueError: if a directory is not a finished run, if the runs use different
      data, or if a value is out of range.
    OSError: if the output cannot be written.
  """
  checks.validate_sharpness(config)
  settings = _settings(config)
  target = config.output or output_dir.dated('sharpness')
  with output_dir.opened(
    target, overwrite=config.overwrite, known=sharpness_report.FILES
  ):
    measured = _measure_all(config, settings, console, command)
    with output_dir.staged(target) as directory:
      sharpness_report.write(measured, config, directory)
      output_dir.write_config(directory, 'sharpness', vars(config))
  sharpness_report.print_table(measured, config, console)
  progress.say(console, f'Report: {target / "report.html"}')


def _measure_all(
  config: configs.SharpnessConfig,
  settings: list[configs.TrainConfig],
  console: Console,
  command: str,
) -> results.Comparison:
  """Returns the runs, each as one of a method of its own."""
  started, start = dt.datetime.now().astimezone(), time.perf_counter()
  runs, names = [], checks.run_names(config)
  with progress.Reporter(console) as reporter:
    for name, path, given in zip(names, config.runs, settings, strict=True):
      with reporter.phase(f'Measuring {path}', 1) as phase:
        accuracy, *solution = _load(path, given, config.examples, reporter)
        run = results.Run(
          method=name,
          seed=given.seed,
          settings=_complete(given),
          log=[],
          evaluations=[{'step': given.steps, 'test_accuracy': accuracy}],
          sharpness=_measure(solution, config),
          seconds=math.nan,
          landscape=random_lines.measure(*solution, seed=config.seed),
        )
        runs.append(run)
        phase.advance()
  return train.as_comparison(
    runs,
    started,
    seconds=time.perf_counter() - start,
    command=command,
    sharpness_radius=config.rho,
  )


def _complete(config: configs.TrainConfig) -> dict[str, Any]:
  """Returns the settings of a run, defaults filled in."""
  settings = configs.settings(config)
  # The settings of the method include the effect of these two flags.
  del settings['rho'], settings['set']
  method = formats.in_words(train.method_settings(config))
  return {
    'method': settings.pop('method'),
    'method_settings': method,
    **settings,
    'learning_rate': configs.learning_rate(config),
    'weight_decay': configs.weight_decay(config),
  }


def _settings(config: configs.SharpnessConfig) -> list[configs.TrainConfig]:
  """Returns the configurations of runs that have finished, on the same data."""
  found: list[configs.TrainConfig] = []
  for path in config.runs:
    given = output_dir.read_run(path)
    if not (path / train.METRICS).is_file():
      msg = f'{path} has not finished; continue with --output {path} --resume'
      raise ValueError(msg)
    if config.data_dir is not None:
      given = dataclasses.replace(given, data_dir=config.data_dir)
    checks.validate(given)
    found.append(given)
    for name in _DATA:
      value, first = getattr(given, name), getattr(found[0], name)
      if value != first:
        msg = (
          f'the runs must use the same data: {name} is {first!r} in '
          f'{config.runs[0]} and {value!r} in {path}; measure them separately'
        )
        raise ValueError(msg)
    if given.steps not in train.saved_steps(path):
      raise _lacks_checkpoint(path, given)
  return found


def _lacks_checkpoint(path: pathlib.Path, config: Any) -> ValueError:
  return ValueError(
    f'{path} lacks the checkpoint of its last step, {config.steps}'
  )


def _load(
  path: pathlib.Path,
  config: configs.TrainConfig,
  examples: int,
  reporter: progress.Reporter,
) -> tuple[float, Any, Any, tuple[Any, datasets.Batch]]:
  """Returns the test accuracy at the end of a run, its loss and parameters.

  The last are the further arguments of the loss: statistics and a batch.
  """
  with contextlib.closing(task.build(config, reporter.line)) as problem:
    trainer = Trainer(
      config, problem, config.method, train.method_settings(config)
    )
    kept = configs.settings(config)
    with Checkpoints(path / train.CHECKPOINTS, kept) as checkpoints:
      found = checkpoints.restore(
        trainer.start(config.seed).state, reporter.line, goes_on=False
      )
    if found is None or found.step != config.steps:
      raise _lacks_checkpoint(path, config)
    if examples > problem.inputs.train_examples:
      msg = (
        f'--examples must be at most {problem.inputs.train_examples}, the '
        f'training examples of {config.dataset}, not {examples}'
      )
      raise ValueError(msg)
    batch = jax.device_put(problem.inputs.fixed(examples))
    params, statistics = trainer.solution(found.state)
    # Not known with another metric.
    accuracy = found.evaluations[-1].get('test_accuracy', math.nan)
    return accuracy, problem.evaluation_loss, params, (statistics, batch)


def _measure(
  solution: list[Any], config: configs.SharpnessConfig
) -> dict[str, float]:
  loss, params, args = solution
  given: Any = {'args': args}
  try:
    eigenvalues = sharpness.top_eigenvalues(
      loss,
      params,
      config.eigenvalues,
      max_vectors=max(_VECTORS, config.eigenvalues + 2),
      tolerance=1e-2,
      seed=config.seed,
      **given,
    )
  except RuntimeError:  # no convergence: report NaN, not a wrong number
    eigenvalues = [math.nan] * config.eigenvalues
  trace = sharpness.hessian_trace(
    loss, params, probes=config.probes, seed=config.seed, **given
  )
  rise = functools.partial(sharpness.sam_sharpness, loss, params, **given)
  return {
    'sam_sharpness': rise(config.rho),
    'sam_sharpness_20_steps': rise(
      config.rho, steps=sharpness_report.ASCENT_STEPS
    ),
    'adaptive_sharpness': sharpness.adaptive_sharpness(
      loss, params, config.adaptive_rho, **given
    ),
    **{
      f'eigenvalue_{number}': float(value)
      for number, value in enumerate(eigenvalues, start=1)
    },
    'trace': trace.value,
    'trace_standard_error': trace.standard_error,
  }
