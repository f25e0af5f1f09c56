"""Sharpness of finished runs, and the landscape around them, side by side."""

import contextlib
import csv
import dataclasses
import json
import pathlib
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from optax_sam import landscape, sharpness
from optax_sam.train import config as config_lib
from optax_sam.train import (
  config_checks,
  data,
  loop,
  output,
  progress,
  single,
  task,
)
from optax_sam.train.checkpoints import Checkpoints

_TABLE, _PLOT = 'sharpness.csv', 'landscape.png'
FILES = frozenset({output.CONFIG, _TABLE, _PLOT})
# What must be one and the same for figures to be comparable.
_DATA = ('dataset', 'label_noise', 'image_size')
_ASCENT_STEPS = 20
_POINTS = 31
_VECTORS = 20


@dataclasses.dataclass(frozen=True)
class _Solution:
  """What a run ended with, and its loss on fixed examples.

  Attributes:
    name: its directory.
    test_accuracy: at the end of the run.
    params: the parameters.
    args: what else its loss takes.
    value_fn: mean loss in evaluation mode.
  """

  name: str
  test_accuracy: float
  params: Any
  args: tuple[Any, data.Batch]
  value_fn: Any


def run(config: config_lib.SharpnessConfig, console: Console) -> None:
  """Measures finished runs of `optax-sam train`.

  Args:
    config: which runs, and what to measure.
    console: where progress and the table go.

  Raises:
    ValueError: if a run hasn't finished or isn't one, if they are of different
      data, or a value is out of range.
    OSError: if the output cannot be written.
  """
  config_checks.validate_sharpness(config)
  settings = [_settings(path, config.data_dir) for path in config.runs]
  _check_one_dataset(config.runs, settings)
  target = config.output or output.dated('sharpness')
  with output.new_directory(
    target, overwrite=config.overwrite, known=FILES
  ) as directory:
    rows, lines = [], {}
    with progress.Reporter(console) as reporter:
      for path, given in zip(config.runs, settings, strict=True):
        with reporter.phase(f'Measuring {path}', 1) as phase:
          solution = _load(path, given, config.examples, reporter)
          rows.append({'run': solution.name} | _measure(solution, config))
          lines[solution.name] = _line(solution, config.seed)
          phase.advance()
    _write(directory, rows, lines)
    output.write_config(directory, 'sharpness', _as_json(config))
  _print(rows, config, console)
  console.print(f'Output: {target}', soft_wrap=True, highlight=False)


def _settings(
  path: pathlib.Path, data_dir: pathlib.Path | None
) -> config_lib.TrainConfig:
  """Returns the configuration of a run that has finished."""
  found = output.read_config(path)
  if found is None or found.get(output.MARK) != 'train':
    msg = f'{path} is not a run of `optax-sam train`'
    raise ValueError(msg)
  if not (path / single.METRICS).exists():
    msg = f'{path} has not finished; go on with --output {path} --resume'
    raise ValueError(msg)
  given: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in found['settings'].items()
  }
  config = config_lib.TrainConfig(**given, output=path, data_dir=data_dir)
  config_checks.validate(config)
  return config


def _check_one_dataset(
  paths: tuple[pathlib.Path, ...], settings: list[config_lib.TrainConfig]
) -> None:
  for path, given in zip(paths, settings, strict=True):
    for name in _DATA:
      value, first = getattr(given, name), getattr(settings[0], name)
      if value != first:
        msg = (
          f'the runs must be of the same data: {name} is {first!r} in '
          f'{paths[0]} and {value!r} in {path}; measure them apart'
        )
        raise ValueError(msg)


def _load(
  path: pathlib.Path,
  config: config_lib.TrainConfig,
  examples: int,
  reporter: progress.Reporter,
) -> _Solution:
  with contextlib.closing(task.build(config, reporter.line)) as problem:
    trainer = loop.Trainer(
      config, problem, config.method, single.method_settings(config)
    )
    with Checkpoints(path / single.CHECKPOINTS, {}) as checkpoints:
      found = checkpoints.restore(
        trainer.start(config.seed).state, reporter.line, goes_on=False
      )
    if found is None or found.step != config.steps:
      msg = f'{path} has lost the checkpoint of its last step, {config.steps}'
      raise ValueError(msg)
    if examples > problem.inputs.train_examples:
      msg = (
        f'--examples must be at most {problem.inputs.train_examples}, the '
        f'training examples of {config.dataset}, not {examples}'
      )
      raise ValueError(msg)
    batch = jax.device_put(problem.inputs.fixed(examples))
    return _Solution(
      name=path.name,
      test_accuracy=found.evaluations[-1]['test_accuracy'],
      params=found.state.params,
      args=(found.state.statistics, batch),
      value_fn=problem.evaluation_loss,
    )


def _measure(
  solution: _Solution, config: config_lib.SharpnessConfig
) -> dict[str, float]:
  given = (solution.value_fn, solution.params)
  args = {'args': solution.args}
  eigenvalues = sharpness.top_eigenvalues(
    *given,
    config.eigenvalues,
    max_vectors=max(_VECTORS, config.eigenvalues + 2),
    tolerance=1e-2,
    seed=config.seed,
    **args,
  )
  trace = sharpness.hessian_trace(
    *given, probes=config.probes, seed=config.seed, **args
  )
  return {
    'test_accuracy': solution.test_accuracy,
    'sam_sharpness': sharpness.sam_sharpness(*given, config.rho, **args),
    'sam_sharpness_20_steps': sharpness.sam_sharpness(
      *given, config.rho, steps=_ASCENT_STEPS, **args
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


def _line(solution: _Solution, seed: int) -> landscape.Line:
  # One key for all runs: equal nets get the same Gaussian.
  direction = landscape.random_direction(solution.params, jax.random.key(seed))
  return landscape.line(
    solution.value_fn,
    solution.params,
    direction,
    points=_POINTS,
    args=solution.args,
  )


def _write(
  directory: pathlib.Path,
  rows: list[dict[str, Any]],
  lines: dict[str, landscape.Line],
) -> None:
  with (directory / _TABLE).open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = landscape.plot_lines(lines, figure.subplots())
  axes.set_title('Along a random direction, filter by filter')
  axes.set_ylim(bottom=0, top=_height(lines))
  figure.savefig(directory / _PLOT, dpi=150)


def _height(lines: dict[str, landscape.Line]) -> float:
  """Returns a height at which the curves differ to the eye."""
  middle = _POINTS // 2
  near = slice(middle // 2, middle + middle // 2 + 1)
  return 1.1 * max(float(line.losses[near].max()) for line in lines.values())


def _as_json(config: config_lib.SharpnessConfig) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _print(
  rows: list[dict[str, Any]],
  config: config_lib.SharpnessConfig,
  console: Console,
) -> None:
  table = Table(
    title='Sharpness',
    caption=f'Of the first {config.examples} training examples, in evaluation '
    f'mode. SAM sharpness at rho={config.rho}, in 1 step and in '
    f'{_ASCENT_STEPS}; adaptive sharpness at rho={config.adaptive_rho}, '
    f'p=infinity; trace by {config.probes} probes.',
  )
  table.add_column('', no_wrap=True)
  for row in rows:
    table.add_column(row['run'], justify='right', overflow='fold')
  for name in rows[0]:
    if name != 'run':
      table.add_row(
        name.replace('_', ' '), *[f'{row[name]:.4g}' for row in rows]
      )
  console.print(table)
