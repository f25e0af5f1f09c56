"""Compares finished runs: sharpness and loss landscape."""

import contextlib
import dataclasses
import datetime as dt
import json
import math
import pathlib
import time
from typing import Any

import jax
from rich.console import Console

from optax_sam import sharpness
from optax_sam.train.commands import progress, train
from optax_sam.train.comparison import surroundings
from optax_sam.train.config import checks, configs, files, output_dir
from optax_sam.train.data import datasets
from optax_sam.train.loop import task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.reports import (
  formats,
  machine,
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
  settings = [_settings(path, config.data_dir) for path in config.runs]
  _check_one_dataset(config.runs, settings)
  target = config.output or output_dir.dated('sharpness')
  with output_dir.opened(
    target, overwrite=config.overwrite, known=sharpness_report.FILES
  ):
    measured = _measure_all(config, settings, console, command)
    with output_dir.staged(target) as directory:
      sharpness_report.write(measured, config, directory)
      output_dir.write_config(directory, 'sharpness', _as_json(config))
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
          landscape=surroundings.line(*solution, seed=config.seed),
        )
        runs.append(run)
        phase.advance()
  return results.Comparison(
    settings={},
    command=command,
    base='',
    runs=runs,
    timings=[],
    versions=machine.versions(),
    machine=machine.describe(),
    started=started.isoformat(timespec='seconds'),
    seconds=time.perf_counter() - start,
    interrupted=False,
    total_steps=0,
    test_examples=0,
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


def _settings(
  path: pathlib.Path, data_dir: pathlib.Path | None
) -> configs.TrainConfig:
  """Returns the configuration of a run that has finished."""
  config = files.of_run(path)
  if not (path / train.METRICS).is_file():
    msg = f'{path} has not finished; continue with --output {path} --resume'
    raise ValueError(msg)
  if data_dir is not None:
    config = dataclasses.replace(config, data_dir=data_dir)
  checks.validate(config)
  return config


def _check_one_dataset(
  paths: tuple[pathlib.Path, ...], settings: list[configs.TrainConfig]
) -> None:
  for path, given in zip(paths, settings, strict=True):
    for name in _DATA:
      value, first = getattr(given, name), getattr(settings[0], name)
      if value != first:
        msg = (
          f'the runs must use the same data: {name} is {first!r} in '
          f'{paths[0]} and {value!r} in {path}; measure them separately'
        )
        raise ValueError(msg)
    if given.steps not in train.saved_steps(path):
      msg = f'{path} lacks the checkpoint of its last step, {given.steps}'
      raise ValueError(msg)


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
      msg = f'{path} lacks the checkpoint of its last step, {config.steps}'
      raise ValueError(msg)
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
  given: tuple[Any, Any] = (solution[0], solution[1])
  args, seed = {'args': solution[2]}, config.seed
  try:
    eigenvalues = sharpness.top_eigenvalues(
      *given,
      config.eigenvalues,
      max_vectors=max(_VECTORS, config.eigenvalues + 2),
      tolerance=1e-2,
      seed=seed,
      **args,
    )
  except RuntimeError:  # no convergence: report NaN, not a wrong number
    eigenvalues = [math.nan] * config.eigenvalues
  trace = sharpness.hessian_trace(
    *given, probes=config.probes, seed=seed, **args
  )
  rise = sharpness.sam_sharpness
  adaptive_rise = sharpness.adaptive_sharpness
  return {
    'sam_sharpness': rise(*given, config.rho, **args),
    'sam_sharpness_20_steps': rise(
      *given, config.rho, steps=sharpness_report.ASCENT_STEPS, **args
    ),
    'adaptive_sharpness': adaptive_rise(*given, config.adaptive_rho, **args),
    **{
      f'eigenvalue_{number}': float(value)
      for number, value in enumerate(eigenvalues, start=1)
    },
    'trace': trace.value,
    'trace_standard_error': trace.standard_error,
  }


def _as_json(config: configs.SharpnessConfig) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config), default=str))
