"""The command `sharpness`: compares finished runs, writes the report."""

import contextlib
import dataclasses
import datetime as dt
import math
import pathlib
import time
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optax_sam import sharpness
from optax_sam.train.commands import progress, train
from optax_sam.train.comparison import surroundings
from optax_sam.train.config import checks, configs, output_dir
from optax_sam.train.data import inputs
from optax_sam.train.loop import task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.reports import figures, formats, page, results, tables

# Settings that must agree for the numbers to be comparable.
_ALIKE = (
  *('dataset', 'train_examples', 'label_noise', 'resize', 'image_size'),
  'loss',
)
_VECTORS = 20
_ASCENT_STEPS = 20  # for a SAM sharpness close to the maximum
_NUMBERS, _POINTS, _PAGE = 'sharpness.csv', 'landscape.csv', 'report.html'
FILES = frozenset({output_dir.CONFIG, _NUMBERS, _POINTS, _PAGE})


def run(
  config: configs.SharpnessConfig, console: Console, command: str = ''
) -> None:
  """Measures finished runs of `optax-sam train` and writes a report."""
  started, start = dt.datetime.now().astimezone(), time.perf_counter()
  settings = _settings(config)
  target = config.output or output_dir.dated('sharpness')
  with output_dir.opened(target, overwrite=config.overwrite, known=FILES):
    with progress.Reporter(console) as reporter:
      runs = [
        _measured(path, given, config, reporter)
        for path, given in settings.items()
      ]
    measured = results.Comparison(
      settings={},
      command=command,
      base='',
      runs=runs,
      started=started.isoformat(timespec='seconds'),
      seconds=time.perf_counter() - start,
      sharpness_radius=config.rho,
    )
    with output_dir.staged(target) as directory:
      _write(measured, config, directory)
      output_dir.write_config(directory, 'sharpness', vars(config))
  _print_table(measured, config, console)
  progress.say(console, f'Report: {target / _PAGE}')


def _settings(
  config: configs.SharpnessConfig,
) -> dict[pathlib.Path, configs.TrainConfig]:
  """Returns the configurations of runs that have finished, on the same data."""
  names = [_name(path) for path in config.runs]
  if not names:
    msg = (
      'name at least one run, a directory that `optax-sam train` has written'
    )
    raise ValueError(msg)
  if len(set(names)) < len(names):
    msg = f'the directories must have different names, not {", ".join(names)}'
    raise ValueError(msg)
  configs.build(configs.SharpnessConfig, vars(config))
  found: dict[pathlib.Path, configs.TrainConfig] = {}
  for path in config.runs:
    checks.storable('run', path.resolve())
    given = output_dir.read_run(path)
    if not (path / train.METRICS).is_file():
      msg = f'{path} has not finished; continue with --output {path} --resume'
      raise ValueError(msg)
    if config.data_dir is not None:
      given = dataclasses.replace(given, data_dir=config.data_dir)
    checks.validate(given)
    found[path] = given
    first = found[config.runs[0]]
    for name in _ALIKE:
      value, other = getattr(given, name), getattr(first, name)
      if value != other:
        msg = (
          f'the runs must have the same data and loss: {name} is {other!r} in '
          f'{config.runs[0]} and {value!r} in {path}; measure them separately'
        )
        raise ValueError(msg)
    if given.steps not in train.saved_steps(path):
      raise _lacks_checkpoint(path, given)
  return found


def _name(path: pathlib.Path) -> str:
  return path.resolve().name  # `.` has none


def _lacks_checkpoint(path: pathlib.Path, config: Any) -> ValueError:
  return ValueError(
    f'{path} lacks the checkpoint of its last step, {config.steps}'
  )


def _measured(
  path: pathlib.Path,
  given: configs.TrainConfig,
  config: configs.SharpnessConfig,
  reporter: progress.Reporter,
) -> results.Run:
  """Returns the measures of a run, as that of a method of its own."""
  settings, examples = train.method_settings(given), config.examples
  problem = task.build(given, reporter.line)
  with (
    reporter.phase(f'Measuring {path}', 1) as phase,
    contextlib.closing(problem.inputs),
  ):
    trainer = Trainer(given, problem, given.method, settings)
    kept = configs.settings(given)
    with Checkpoints(path / train.CHECKPOINTS, kept) as checkpoints:
      found = checkpoints.restore(
        trainer.start(given.seed).state, reporter.line, goes_on=False
      )
    if found is None or found.step != given.steps:
      raise _lacks_checkpoint(path, given)
    which, known = f' of {given.dataset}', problem.inputs.train_examples
    inputs.check_count('examples', examples, known, which)
    params, statistics = trainer.solution(found.state)
    args = (statistics, jax.device_put(problem.inputs.fixed(examples)))
    loss = trainer.task.evaluation_loss
    # The settings of the method include the effect of these two flags.
    del kept['rho'], kept['set']
    # The accuracy is not known with another metric.
    accuracy = found.evaluations[-1].get('test_accuracy', math.nan)
    run = results.Run(
      method=_name(path),
      seed=given.seed,
      settings={
        'method': kept.pop('method'),
        'method_settings': formats.in_words(settings),
        **kept,
        'learning_rate': configs.learning_rate(given),
        'weight_decay': configs.weight_decay(given),
      },
      log=[],
      evaluations=[{'step': given.steps, 'test_accuracy': accuracy}],
      sharpness=_sharpness(loss, params, args, config),
      seconds=math.nan,
      landscape=surroundings.line(loss, params, args, seed=config.seed),
    )
    phase.advance()
  return run


def _sharpness(
  loss: Any, params: Any, args: Any, config: configs.SharpnessConfig
) -> dict[str, float]:
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
  rise, steps = sharpness.sam_sharpness, _ASCENT_STEPS
  return {
    'sam_sharpness': rise(loss, params, config.rho, **given),
    'sam_sharpness_20_steps': rise(
      loss, params, config.rho, steps=steps, **given
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


def _write(
  measured: results.Comparison,
  config: configs.SharpnessConfig,
  directory: pathlib.Path,
) -> None:
  """Writes the page and the numbers into an existing directory."""
  points = [
    {'run': run.method, **row} for run in measured.runs for row in run.landscape
  ]
  title = f'Sharpness of {formats.count(len(measured.runs), "finished run")}'
  files = {
    _NUMBERS: tables.csv_of(_rows(measured)),
    _POINTS: tables.csv_of(points),
    _PAGE: page.render(
      measured,
      [tables.results(measured)],
      {'Sharpness and landscape': figures.solutions(measured)},
      title=title,
      headline=title,
      setup=_setup(config),
      warnings=[],
      glossary='sharpness_glossary.html',
      config=config,
      facts={'Settings': {run.method: run.settings for run in measured.runs}},
    ),
  }
  for name, text in files.items():
    output_dir.write(directory / name, text.encode())


def _rows(measured: results.Comparison) -> list[dict[str, Any]]:
  name = 'test_accuracy'
  return [
    {'run': run.method, name: run.last(name), **run.sharpness}
    for run in measured.runs
  ]


def _print_table(
  measured: results.Comparison,
  config: configs.SharpnessConfig,
  console: Console,
) -> None:
  """Prints the numbers, a column per run."""
  table = Table(title='Sharpness', caption=_setup(config))
  rows = _rows(measured)
  table.add_column('', no_wrap=True)
  for row in rows:
    header = Text(formats.printable(row.pop('run')))
    table.add_column(header, justify='right', overflow='fold')
  for name in rows[0]:
    numbers = [f'{row[name]:.4g}' for row in rows]
    table.add_row(name.replace('_', ' '), *numbers)
  console.print(table)


def _setup(config: configs.SharpnessConfig) -> str:
  examples = formats.count(config.examples, 'training example')
  return (
    f'On the first {examples}, in evaluation mode. SAM sharpness at radius '
    f'{config.rho}, in 1 step and in {_ASCENT_STEPS}; adaptive sharpness at '
    f'radius {config.adaptive_rho}; trace by {config.probes} random vectors; '
    f'seed {config.seed}.'
  )
