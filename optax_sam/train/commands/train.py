"""One run of one method, with checkpoints and resume.

Several processes may train together (`optax_sam.train.distributed.processes`).
Then only the first one writes and reports.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import math
import pathlib
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import msgspec
from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.config import checks, configs, errors, files, output_dir
from optax_sam.train.data import inputs
from optax_sam.train.distributed import processes, sharding
from optax_sam.train.loop import objectives, task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Progress, Row, Trainer
from optax_sam.train.optimizers import accuracy_schedule, build
from optax_sam.train.reports import machine, results, run_page

CHECKPOINTS = 'checkpoints'
METRICS = 'metrics.jsonl'
PAGE = 'report.html'
FILES = frozenset(
  {output_dir.CONFIG, output_dir.LOCK, CHECKPOINTS, METRICS, PAGE}
)


def run(
  config: configs.TrainConfig, console: Console, command: str = ''
) -> bool:
  """Trains one model, from the start or from the last checkpoint.

  Args:
    config: model, data, method and settings of the run.
    console: console for progress.
    command: the command line, for the report.

  Returns:
    True if the run is finished; False after Ctrl-C or SIGTERM.

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
  if config.resume:  # checked before images are listed, which takes minutes
    processes.on_first(lambda: _check_resumable(config))
  elif config.output is not None:
    check = functools.partial(output_dir.check, config.output, known=FILES)
    processes.on_first(lambda: check(overwrite=config.overwrite))
  if not processes.is_first():
    console = Console(quiet=True)
  with contextlib.ExitStack() as stack:
    reporter = stack.enter_context(progress.Reporter(console))
    # A warning is of one process.
    warn = reporter.line if processes.is_first() else errors.print_warning
    problem = processes.together(lambda: task.build(config, warn))
    stack.callback(problem.close)
    config = processes.together(lambda: _with_steps(config, problem, settings))
    trainer = Trainer(config, problem, config.method, settings, devices)
    current = trainer.start(config.seed)  # fails before anything is written
    default = output_dir.dated(
      f'{config.method}-{configs.dataset_name(config)}'
    )
    target = pathlib.Path(processes.broadcast(str(config.output or default)))
    processes.on_first(lambda: stack.enter_context(_opened(config, target)))
    processes.together(lambda: _check_shared(target))
    finished, sharpness = None, {}
    again = shlex.join(['optax-sam', 'train', '--output', str(target)])
    try:
      with Checkpoints(
        target / CHECKPOINTS, configs.settings(config)
      ) as checkpoints:
        if config.resume:
          current = _restored(config, trainer, current, checkpoints, reporter)
          processes.on_first(lambda: _prolong(config, target))
        finished = False
        finished = _train(config, trainer, current, checkpoints, reporter)
      if finished and not current.stopped:
        sharpness = trainer.measure_sharpness(current.state)
      if finished:
        processes.on_first(lambda: _write_metrics(target, current, sharpness))
        page = _as_comparison(
          config,
          problem,
          settings,
          current,
          sharpness,
          command=command,
          started=started.isoformat(timespec='seconds'),
          # The time of a resumed run is that of more than one process.
          seconds=math.nan if config.resume else time.perf_counter() - start,
        )
        text = run_page.render_page(page).encode()
        processes.on_first(lambda: output_dir.write(target / PAGE, text))
    except KeyboardInterrupt:
      if jax.process_count() > 1:
        raise  # the other processes do not know
      finished = False
    except (ValueError, OSError) as error:
      if finished is None or not saved_steps(target):
        raise  # nothing was trained, or nothing is left
      refused = isinstance(error, processes.RefusedError)
      msg = (
        f'{errors.describe(error)}; {target} has {_saved(target)}; continue '
        f'with: {again} --resume'
      )
      raise (processes.RefusedError if refused else ValueError)(msg) from None
    if not finished:
      reporter.line(
        f'Interrupted after step {current.step} of {config.steps}; {target} '
        f'has {_saved(target)}; continue with: {again} --resume'
      )
      return False
    if current.stopped:
      raise errors.DivergedError(_divergence(config, current, target))
    reporter.line(_summary(config, current, sharpness))
    skipped = sum(map(int, processes.gather(str(problem.inputs.skipped))))
    if skipped:
      reporter.line(f'Images skipped as corrupt: {skipped}.')
    reporter.line(f'Run: {target}')
  return True


def _check_alike(config: configs.TrainConfig) -> None:
  """Raises a ValueError if the processes have different configurations."""
  values = configs.settings(config)
  for name in ('output', 'overwrite', 'resume', 'mesh', 'epochs'):
    value = getattr(config, name)
    values[name] = str(value) if isinstance(value, pathlib.Path) else value
  processes.check_alike('flags', values)


def _with_steps(
  config: configs.TrainConfig, problem: task.Task, settings: dict[str, Any]
) -> configs.TrainConfig:
  """Returns the configuration with its length in steps; checks the method."""
  # A method that holds examples out has fewer steps in an epoch.
  trainer = Trainer(config, problem, config.method, settings)
  if config.epochs is None:
    return config
  steps = config.epochs * trainer.epoch_steps
  return dataclasses.replace(config, steps=steps, epochs=None)


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


@contextlib.contextmanager
def _opened(
  config: configs.TrainConfig, target: pathlib.Path
) -> Iterator[None]:
  """Holds the directory of the run, new, emptied or to resume."""
  with output_dir.opened(
    target, known=FILES, overwrite=config.overwrite, resume=config.resume
  ):
    if config.resume:
      _check_resumable(config)
    else:
      output_dir.clear(target, FILES)
      files.write_run(target, config)
    try:
      yield
    except BaseException:
      nothing = not (saved_steps(target) or (target / METRICS).exists())
      if nothing and not config.resume:
        output_dir.clear(target, FILES)
      raise


def _check_resumable(config: configs.TrainConfig) -> None:
  """Raises a ValueError that lists every setting that differs."""
  former, now = files.of_run(config.output, '--output '), config
  target = now.output
  assert target is not None  # checked by `of_run`
  for name in FILES & {path.name for path in target.iterdir()}:
    if (target / name).is_dir() != (name == CHECKPOINTS):
      msg = f'--output {target}: {name} is not of optax-sam; remove it'
      raise ValueError(msg)
  different = [
    f'{name} was {getattr(former, name)!r} and is now {getattr(now, name)!r}'
    for name in sorted(configs.settings(now).keys() - {'steps'})
    if getattr(former, name) != getattr(now, name)
  ]
  if now.epochs is None and now.steps < former.steps:
    different.append(f'steps was {former.steps} and can only grow')
  if different:
    msg = f'--resume under another configuration: {"; ".join(different)}'
    raise ValueError(msg)


def _prolong(config: configs.TrainConfig, target: pathlib.Path) -> None:
  """Removes the results of a run that was finished with fewer steps."""
  if files.of_run(target).steps != config.steps:
    files.write_run(target, config)
    for name in (METRICS, PAGE):
      (target / name).unlink(missing_ok=True)


def _check_shared(target: pathlib.Path) -> None:
  if output_dir.read_config(target) is None:
    msg = (
      f'--output {target} of process 0 is not visible to this process; give a '
      f'directory on a file system that all processes share'
    )
    raise ValueError(msg)


def _restored(
  config: configs.TrainConfig,
  trainer: Trainer,
  start: Progress,
  checkpoints: Checkpoints,
  reporter: progress.Reporter,
) -> Progress:
  found = checkpoints.restore(start.state, reporter.line)
  if found is None:
    reporter.line('Resuming from the start, there is no checkpoint yet.')
    return start
  processes.together(
    lambda: inputs.check_state(
      trainer.inputs, found.inputs, found.step, config.seed
    )
  )
  reporter.line(f'Resuming from the checkpoint of step {found.step}.')
  return found


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
  heard = {signal.SIGINT}
  if jax.process_count() == 1:
    heard |= {signal.SIGTERM, signal.SIGHUP}
  if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    heard -= {signal.SIGHUP}
  former = {number: signal.signal(number, handle) for number in heard}
  try:
    yield event
  finally:
    for number, handler in former.items():
      signal.signal(number, handler)


def _write_metrics(
  target: pathlib.Path, current: Progress, sharpness: Row
) -> None:
  """Writes one JSON object per line; the last row is why a run diverged."""
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
  # msgspec writes NaN and infinity, which JSON lacks, as null.
  lines = b''.join(msgspec.json.encode(row) + b'\n' for row in rows)
  output_dir.write(target / METRICS, lines)


def _as_comparison(
  config: configs.TrainConfig,
  problem: task.Task,
  settings: dict[str, Any],
  current: Progress,
  sharpness: Row,
  **more: Any,
) -> results.Comparison:
  """Returns the run as a comparison of one method, for the page."""
  run = results.Run(
    method=config.method,
    seed=config.seed,
    settings=settings,
    log=current.log,
    evaluations=current.evaluations,
    sharpness=sharpness,
    seconds=more['seconds'],
    validations=current.validations,
    stopped=current.stopped,
  )
  return results.Comparison(
    settings=configs.settings(config),
    base=config.method,
    runs=[run],
    timings=[],
    versions=machine.versions(),
    machine=machine.describe(),
    interrupted=False,
    total_steps=config.steps,
    test_examples=problem.inputs.test_examples,
    sharpness_radius=config.sharpness_radius,
    metric=problem.objective.measured,
    **more,
  )


def _evaluation(current: Progress, measured: results.Metric) -> str:
  last = current.evaluations[-1]
  line = f'  step {last["step"]}: {objectives.shown(measured, last)}'
  if 'ema_test_loss' in last:
    averaged = objectives.shown(measured, last, 'ema_')
    line += f'; with averaged weights: {averaged}'
  return line


def saved_steps(target: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints that are complete."""
  paths = (target / CHECKPOINTS).glob('[0-9]*')
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _saved(target: pathlib.Path) -> str:
  """Returns what is saved of a run, for a message."""
  steps = ', '.join(map(str, saved_steps(target)))
  return f'checkpoints of steps {steps}' if steps else 'no checkpoint'


def _divergence(
  config: configs.TrainConfig, current: Progress, target: pathlib.Path
) -> str:
  return (
    f'{config.method} diverged at step {current.step} of {config.steps}: '
    f'{current.stopped}; {target} has {METRICS} up to this step and '
    f'{_saved(target)}; try a smaller --learning-rate or --rho, or --clip-norm'
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
