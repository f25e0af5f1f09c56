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
from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.data import datasets
from optax_sam.train.loop import task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.reports import (
  machine,
  page,
  random_lines,
  sharpness_report,
)
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements

# Settings that must agree for the numbers to be comparable.
_DATA = ('dataset', 'label_noise', 'image_size')
_VECTORS = 20


@dataclasses.dataclass(frozen=True)
class _Solution:
  """The final parameters of a run, and its loss on fixed examples.

  Attributes:
    test_accuracy: test accuracy at the end of the run.
    params: the final parameters.
    args: further arguments of `value_fn`.
    value_fn: mean loss in evaluation mode.
  """

  test_accuracy: float
  params: Any
  args: tuple[Any, datasets.Batch]
  value_fn: Any


def run(
  config: configs.SharpnessConfig, console: Console, command: str = ''
) -> None:
  """Measures finished runs of `optax-sam train` and writes a report.

  Args:
    config: directories of the runs, and settings of the measures.
    console: console for progress and the table.
    command: the command line, for the report.

  Raises:
    ValueError: if a directory is not a finished run, if the runs use different
      data, or if a value is out of range.
    OSError: if the output cannot be written.
  """
  checks.validate_sharpness(config)
  settings = [_settings(path, config.data_dir) for path in config.runs]
  _check_one_dataset(config.runs, settings)
  target = config.output or output_dir.dated('sharpness')
  with output_dir.new_directory(
    target, overwrite=config.overwrite, known=sharpness_report.FILES
  ) as directory:
    measured = _measure_all(config, settings, console, command)
    sharpness_report.write(measured, directory)
    output_dir.write_config(directory, 'sharpness', _as_json(config))
  sharpness_report.print_table(measured, console)
  console.print(
    f'Report: {target / "report.html"}', soft_wrap=True, highlight=False
  )


def _measure_all(
  config: configs.SharpnessConfig,
  settings: list[configs.TrainConfig],
  console: Console,
  command: str,
) -> Measurements:
  started, start = dt.datetime.now().astimezone(), time.perf_counter()
  numbers, lines = {}, {}
  names = checks.run_names(config)
  with progress.Reporter(console) as reporter:
    for name, path, given in zip(names, config.runs, settings, strict=True):
      with reporter.phase(f'Measuring {path}', 1) as phase:
        solution = _load(path, given, config.examples, reporter)
        numbers[name] = _measure(solution, config)
        lines[name] = random_lines.measure(
          solution.value_fn, solution.params, solution.args, seed=config.seed
        )
        phase.advance()
  return Measurements(
    config=config,
    command=command,
    settings={
      name: _complete(given)
      for name, given in zip(names, settings, strict=True)
    },
    numbers=numbers,
    lines=lines,
    versions=machine.versions(),
    machine=machine.describe(),
    started=started.isoformat(timespec='seconds'),
    seconds=time.perf_counter() - start,
  )


def _complete(config: configs.TrainConfig) -> dict[str, Any]:
  """Returns the settings of a run, defaults filled in."""
  settings = configs.settings(config)
  # The settings of the method include the effect of these two flags.
  del settings['rho'], settings['set']
  method = {
    'method': settings.pop('method'),
    'method_settings': page.in_one_line(train.method_settings(config)),
  }
  rates = {
    'learning_rate': configs.learning_rate(config),
    'weight_decay': configs.weight_decay(config),
  }
  return method | settings | rates


def _settings(
  path: pathlib.Path, data_dir: pathlib.Path | None
) -> configs.TrainConfig:
  """Returns the configuration of a run that has finished."""
  found = output_dir.read_config(path)
  if found is None or found.get(output_dir.MARK) != 'train':
    msg = f'{path} is not a run of `optax-sam train`'
    raise ValueError(msg)
  if not (path / train.METRICS).exists():
    msg = f'{path} has not finished; continue with --output {path} --resume'
    raise ValueError(msg)
  given: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in found['settings'].items()
  }
  config = configs.TrainConfig(**given, output=path, data_dir=data_dir)
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


def _load(
  path: pathlib.Path,
  config: configs.TrainConfig,
  examples: int,
  reporter: progress.Reporter,
) -> _Solution:
  with contextlib.closing(task.build(config, reporter.line)) as problem:
    trainer = Trainer(
      config, problem, config.method, train.method_settings(config)
    )
    settings = configs.settings(config)
    with Checkpoints(path / train.CHECKPOINTS, settings) as checkpoints:
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
    return _Solution(
      test_accuracy=found.evaluations[-1]['test_accuracy'],
      params=params,
      args=(statistics, batch),
      value_fn=problem.evaluation_loss,
    )


def _measure(
  solution: _Solution, config: configs.SharpnessConfig
) -> dict[str, float]:
  given = (solution.value_fn, solution.params)
  args = {'args': solution.args}
  try:
    eigenvalues = sharpness.top_eigenvalues(
      *given,
      config.eigenvalues,
      max_vectors=max(_VECTORS, config.eigenvalues + 2),
      tolerance=1e-2,
      seed=config.seed,
      **args,
    )
  except RuntimeError:  # no convergence: report NaN, not a wrong number
    eigenvalues = [math.nan] * config.eigenvalues
  trace = sharpness.hessian_trace(
    *given, probes=config.probes, seed=config.seed, **args
  )
  return {
    'test_accuracy': solution.test_accuracy,
    'sam_sharpness': sharpness.sam_sharpness(*given, config.rho, **args),
    'sam_sharpness_20_steps': sharpness.sam_sharpness(
      *given, config.rho, steps=ASCENT_STEPS, **args
    ),
    'adaptive_sharpness': sharpness.adaptive_sharpness(
      *given, config.adaptive_rho, **args
    ),
    **{
      f'eigenvalue_{number}': float(value)
      for number, value in enumerate(eigenvalues, start=1)
    },
    'trace': trace.value,
    'trace_standard_error': trace.standard_error,
  }


def _as_json(config: configs.SharpnessConfig) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config), default=str))
