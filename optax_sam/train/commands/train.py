"""One run of one method, with checkpoints and resume.

Several processes may train one model together
(`optax_sam.train.distributed.processes`). Then only the first one writes and
reports.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.config import checks, configs, errors, output_dir
from optax_sam.train.data import inputs
from optax_sam.train.distributed import processes, sharding
from optax_sam.train.loop import objectives, task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Progress, Row, Trainer
from optax_sam.train.optimizers import accuracy_schedule, build
from optax_sam.train.reports import comparison_report, machine, results

CHECKPOINTS = 'checkpoints'
METRICS = 'metrics.jsonl'
PAGE = 'report.html'
FILES = frozenset({output_dir.CONFIG, CHECKPOINTS, METRICS, PAGE})


def run(
  config: configs.TrainConfig, console: Console, command: str = ''
) -> bool:
  """Trains one model, from the start or from the last checkpoint.

  Args:
    config: model, data, method and settings of the run.
    console: console for progress.
    command: the command line, for the report.

  Returns:
    True if the run is finished; False after Ctrl-C, with a checkpoint saved.

  Raises:
    ValueError: if the configuration is invalid, or differs from that of the run
      to resume; raised before any training.
    OSError: if the output cannot be written.
    DivergedError: if the run diverged; its metrics are written.
  """
  started, start = dt.datetime.now().astimezone(), time.perf_counter()
  checks.validate(config)
  _check_alike(config)
  devices = processes.together(
    lambda: sharding.build(config.mesh, config.batch_size)
  )
  settings = processes.together(lambda: method_settings(config))
  processes.on_first(lambda: _check_output(config))
  if not processes.is_first():
    console = Console(quiet=True)
  with (
    progress.Reporter(console) as reporter,
    contextlib.closing(
      processes.together(lambda: task.build(config, _warn(reporter)))
    ) as problem,
  ):
    config = processes.together(lambda: _with_steps(config, problem, settings))
    target = _prepare(config)
    trainer = Trainer(config, problem, config.method, settings, devices)
    with Checkpoints(
      target / CHECKPOINTS, configs.settings(config)
    ) as checkpoints:
      current = _begin(config, trainer, checkpoints, reporter)
      finished = _train(config, trainer, current, checkpoints, reporter)
    if not finished:
      reporter.line(
        f'Interrupted after step {current.step} of {config.steps}; continue '
        f'with --output {target} --resume.'
      )
      return False
    sharpness = {}
    if not current.stopped:
      sharpness = trainer.measure_sharpness(current.state)
    # The time of a resumed run is that of more than one process.
    seconds = math.nan if config.resume else time.perf_counter() - start
    page = _as_comparison(
      config, problem, settings, current, sharpness, seconds, started, command
    )
    processes.on_first(
      lambda: _write_metrics(target / METRICS, current, sharpness)
    )
    processes.on_first(
      lambda: comparison_report.write_page(page, target / PAGE)
    )
    if current.stopped:
      raise errors.DivergedError(_divergence(config, current, target))
    reporter.line(_summary(config, current, sharpness))
    skipped = sum(map(int, processes.gather(str(problem.inputs.skipped))))
    if skipped:
      reporter.line(f'Images skipped as corrupt: {skipped}.')
  console.print(f'Run: {target}', soft_wrap=True, highlight=False)
  return True


def _check_alike(config: configs.TrainConfig) -> None:
  """Raises a ValueError if the processes have different configurations."""
  values = configs.settings(config)
  for name in ('output', 'overwrite', 'resume', 'mesh', 'epochs'):
    value = getattr(config, name)
    values[name] = str(value) if isinstance(value, pathlib.Path) else value
  processes.check_alike('flags', values)


def _check_output(config: configs.TrainConfig) -> None:
  # Checked before images are listed, which may take minutes.
  if config.output is not None and not config.resume:
    output_dir.check(config.output, overwrite=config.overwrite, known=FILES)


def _with_steps(
  config: configs.TrainConfig, problem: task.Task, settings: dict[str, Any]
) -> configs.TrainConfig:
  """Returns the configuration with its length in steps; checks the method."""
  # A method that holds examples out has fewer steps in an epoch.
  trainer = Trainer(config, problem, config.method, settings)
  if config.epochs is None:
    return config
  return dataclasses.replace(config, steps=config.epochs * trainer.epoch_steps)


def _warn(reporter: progress.Reporter) -> Callable[[str], None]:
  """Returns a function that prints a warning on this process."""
  if processes.is_first():
    return reporter.line
  return lambda text: print(text, file=sys.stderr)


def method_settings(config: configs.TrainConfig) -> dict[str, Any]:
  """Returns the method's complete settings, after building it once."""
  name = config.method
  build.check_names([name], config.base)
  given = build.parse_settings(config.set, [name]).get(name, {})
  settings = build.complete_settings(name, given, config.rho)
  build.optimizer(name, settings, config, seed=config.seed)
  if build.averaging(name, settings) and config.dataset == 'imagenet':
    msg = (
      f'--method {name} validates on held-out training examples, '
      f'which {config.dataset} does not have; train on digits or '
      f'mnist1d, or call optax_sam.{name} in your own training loop'
    )
    raise ValueError(msg)
  followed = accuracy_schedule.following(settings, 0.0)
  if followed and config.dataset == 'imagenet':
    setting = min(followed)
    msg = (
      f'--method {name} follows the accuracy on all training examples, which '
      f'is not measured on {config.dataset}; give --set {name}.{setting}=...'
    )
    raise ValueError(msg)
  return settings


def _prepare(config: configs.TrainConfig) -> pathlib.Path:
  """Returns the directory of the run, new or existing."""
  data = configs.dataset_name(config)
  default = output_dir.dated(f'{config.method}-{data}')
  target = pathlib.Path(processes.broadcast(str(config.output or default)))
  action = _check_resumable if config.resume else _create
  processes.on_first(lambda: action(config, target))
  processes.together(lambda: _check_shared(target))
  return target


def _create(config: configs.TrainConfig, target: pathlib.Path) -> None:
  with output_dir.new_directory(
    target, overwrite=config.overwrite, known=FILES
  ) as directory:
    output_dir.write_config(directory, 'train', configs.settings(config))


def _check_resumable(config: configs.TrainConfig, target: pathlib.Path) -> None:
  if config.output is None:
    msg = '--resume needs --output, the directory of the run to resume'
    raise ValueError(msg)
  if not target.is_dir():
    msg = f'--output {target}: there is no run to resume'
    raise ValueError(msg)
  former = output_dir.read_config(target)
  if former is None or former.get(output_dir.MARK) != 'train':
    msg = f'--output {target} is not a run of `optax-sam train`'
    raise ValueError(msg)
  # A flag that is younger than the run had its present default.
  defaults = configs.settings(configs.TrainConfig())
  _check_same(defaults | former['settings'], configs.settings(config))


def _check_shared(target: pathlib.Path) -> None:
  if output_dir.read_config(target) is None:
    msg = (
      f'--output {target} of process 0 is not visible to this process; give a '
      f'directory on a file system that all processes share'
    )
    raise ValueError(msg)


def _check_same(former: dict[str, Any], now: dict[str, Any]) -> None:
  """Raises a ValueError that lists every setting that differs."""
  different = [
    f'{name} was {former.get(name)!r} and is now {now.get(name)!r}'
    for name in sorted(former.keys() | now.keys())
    if former.get(name) != now.get(name)
  ]
  if different:
    msg = f'--resume under another configuration: {"; ".join(different)}'
    raise ValueError(msg)


def _begin(
  config: configs.TrainConfig,
  trainer: Trainer,
  checkpoints: Checkpoints,
  reporter: progress.Reporter,
) -> Progress:
  start = trainer.start(config.seed)
  found = None
  if config.resume:
    found = former = checkpoints.restore(start.state, reporter.line)
    where = 'no checkpoint yet, from the start'
    if former is not None:
      processes.together(
        lambda: inputs.check_state(
          trainer.inputs, former.inputs, former.step, config.seed
        )
      )
      where = f'from the checkpoint of step {former.step}'
    reporter.line(f'Resuming {where}.')
  return start if found is None else found


def _train(
  config: configs.TrainConfig,
  trainer: Trainer,
  current: Progress,
  checkpoints: Checkpoints,
  reporter: progress.Reporter,
) -> bool:
  """Trains and saves checkpoints; returns whether the run is finished."""
  with reporter.phase('Compiling', 1) as phase:
    trainer.compile(current.best_train_accuracy)
    phase.advance()
  with (
    reporter.phase('Training', config.steps) as phase,
    _interrupts_between_steps() as interrupted,
  ):
    phase.advance(current.step)

    def after_step(current: Progress) -> None:
      phase.advance()
      due = current.step % config.checkpoint_every == 0
      if due and not current.stopped:
        checkpoints.save(current)
      if (
        current.evaluations and current.evaluations[-1]['step'] == current.step
      ):
        reporter.line(_evaluation(current, trainer.task.objective.measured))
      if processes.should_stop(current.step, interrupted.is_set()):
        checkpoints.save(current)
        raise KeyboardInterrupt

    try:
      trainer.run(current, config.seed, after_step)
    except KeyboardInterrupt:
      return False  # a second Ctrl-C: not saved, the step may be incomplete
    if not current.stopped:
      checkpoints.save(current)
    return True


@contextlib.contextmanager
def _interrupts_between_steps() -> Iterator[threading.Event]:
  """Yields an event that Ctrl-C or SIGTERM sets; a second one stops at once.

  A checkpoint of a step that is only partly recorded would resume wrongly.
  """
  event = threading.Event()

  def handle(*arguments: object) -> None:
    del arguments
    if event.is_set():
      processes.stop_at_once()
    event.set()
    processes.interrupt()

  if threading.current_thread() is not threading.main_thread():
    yield event  # only the main thread may install a handler
    return
  # With several processes JAX handles SIGTERM and notifies the others.
  heard = [signal.SIGINT]
  if jax.process_count() == 1:
    heard.append(signal.SIGTERM)
  former = {number: signal.signal(number, handle) for number in heard}
  try:
    yield event
  finally:
    for number, handler in former.items():
      signal.signal(number, handler)


def _write_metrics(
  path: pathlib.Path, current: Progress, sharpness: Row
) -> None:
  """Writes one JSON object per line, atomically.

  A run that diverged has no sharpness, and its last row is the reason.
  """
  last = {'kind': 'sharpness', **sharpness}
  if current.stopped:
    step, reason = current.step, current.stopped
    last = {'kind': 'diverged', 'step': step, 'reason': reason}
  rows = [
    *({'kind': 'log', **row} for row in current.log),
    *({'kind': 'validation', **row} for row in current.validations),
    *({'kind': 'evaluation', **row} for row in current.evaluations),
    last,
  ]
  # JSON has neither NaN nor infinity.
  lines = [
    json.dumps(
      {
        key: None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in row.items()
      }
    )
    for row in rows
  ]
  temporary = path.with_suffix('.partial')
  temporary.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  temporary.replace(path)


def _as_comparison(
  config: configs.TrainConfig,
  problem: task.Task,
  settings: dict[str, Any],
  current: Progress,
  sharpness: Row,
  seconds: float,
  started: dt.datetime,
  command: str,
) -> results.Comparison:
  """Returns the run as a comparison of one method, for the page."""
  run = results.Run(
    method=config.method,
    seed=config.seed,
    settings=settings,
    log=current.log,
    evaluations=current.evaluations,
    sharpness=sharpness,
    seconds=seconds,
    validations=current.validations,
    stopped=current.stopped,
  )
  return results.Comparison(
    settings=configs.settings(config),
    command=command,
    base=config.method,
    runs=[run],
    timings=[],
    versions=machine.versions(),
    machine=machine.describe(),
    started=started.isoformat(timespec='seconds'),
    seconds=seconds,
    interrupted=False,
    total_steps=config.steps,
    test_examples=problem.inputs.test_examples,
    sharpness_radius=config.sharpness_radius,
    metric=problem.objective.measured,
  )


def _evaluation(current: Progress, measured: results.Metric) -> str:
  last = current.evaluations[-1]
  line = f'  step {last["step"]}: {objectives.shown(measured, last)}'
  if 'ema_test_loss' in last:
    averaged = objectives.shown(measured, last, 'ema_')
    line += f'; with averaged weights: {averaged}'
  return line


def _divergence(
  config: configs.TrainConfig, current: Progress, target: pathlib.Path
) -> str:
  paths = (target / CHECKPOINTS).glob('[0-9]*')
  steps = ', '.join(map(str, sorted(int(path.name) for path in paths)))
  saved = f'checkpoints of steps {steps}' if steps else 'no checkpoint'
  return (
    f'{config.method} diverged at step {current.step} of {config.steps}: '
    f'{current.stopped}; {target} has {METRICS} up to this step and {saved}; '
    f'try a smaller --learning-rate or --rho, or --clip-norm'
  )


def _summary(
  config: configs.TrainConfig, current: Progress, sharpness: Row
) -> str:
  taken = int(current.log[-1]['second_gradients'])
  return (
    f'{config.method}: {taken} of {current.step} steps took a perturbed '
    f'gradient; SAM sharpness at rho={config.sharpness_radius}: '
    f'{sharpness["sam_sharpness"]:.3g}; '
    f'top eigenvalue: {sharpness["top_eigenvalue"]:.3g}'
  )
