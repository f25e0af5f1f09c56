"""One run of one method, with checkpoints and resume.

Several processes may train together (`optax_sam.train.distributed.processes`).
Then only the first one writes and reports.
"""

import contextlib
import dataclasses
import datetime as dt
import math
import pathlib
import shlex
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import msgspec
from rich.console import Console

from optax_sam.train.commands import progress
from optax_sam.train.config import checks, configs, errors, output_dir
from optax_sam.train.distributed import processes, sharding
from optax_sam.train.loop import objectives, task
from optax_sam.train.loop.checkpoints import Checkpoints
from optax_sam.train.loop.trainer import Progress, Row, Trainer
from optax_sam.train.optimizers import build
from optax_sam.train.reports import comparison_report, results

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

  Returns whether the run is finished, which it is not after Ctrl-C or SIGTERM.
  Raises a DivergedError if the run diverged; its metrics are written.
  """
  started = dt.datetime.now().astimezone()
  checks.validate(config)
  alike = {x: getattr(config, x) for x in ('overwrite', 'resume', 'mesh')}
  alike |= {'output': str(config.output), 'epochs': config.epochs}
  processes.check_alike('flags', configs.settings(config) | alike)
  together = processes.together
  devices = together(lambda: sharding.build(config.mesh, config.batch_size))
  settings = together(lambda: method_settings(config))
  # Before images are listed, which takes minutes.
  processes.on_first(lambda: _check_output(config))
  if not processes.is_first():
    console = Console(quiet=True)
  with contextlib.ExitStack() as stack:
    reporter = stack.enter_context(progress.Reporter(console))
    # A warning is of one process.
    warn = reporter.line if processes.is_first() else errors.print_warning
    problem = together(lambda: task.build(config, warn))
    stack.callback(problem.inputs.close)
    make = lambda: Trainer(config, problem, config.method, settings, devices)
    trainer = together(make)
    if config.epochs is not None:
      steps = config.epochs * trainer.epoch_steps
      config = dataclasses.replace(config, steps=steps, epochs=None)
      trainer = make()
    start = trainer.start(config.seed)  # fails before anything is written
    name = f'{config.method}-{configs.dataset_name(config)}'
    target = config.output or output_dir.dated(name)
    target = pathlib.Path(processes.broadcast(str(target)))
    processes.on_first(lambda: stack.enter_context(_opened(config, target)))
    together(lambda: _check_shared(target))
    this = _Run(config, trainer, target, reporter, start)
    again = shlex.join(['optax-sam', 'train', '--output', str(target)])
    how = f'continue with: {again} --resume'
    finished = None
    try:
      examples = {'examples': trainer.inputs.train_examples}
      kept = configs.settings(config) | examples
      with Checkpoints(target / CHECKPOINTS, kept) as checkpoints:
        if config.resume:
          this.restore(checkpoints)
        finished = False
        finished = this.train(checkpoints)
      if finished:
        this.measure(command, started)
    except KeyboardInterrupt:
      if jax.process_count() > 1:
        raise  # the other processes must end too
      finished = False
    except (ValueError, OSError) as error:
      if finished is None or not saved_steps(target):
        raise  # nothing was trained, or nothing is left
      refused = isinstance(error, processes.RefusedError)
      msg = f'{errors.describe(error)}; {target} has {_saved(target)}; {how}'
      raise (processes.RefusedError if refused else ValueError)(msg) from None
    step = f'step {this.now.step} of {config.steps}'
    if not finished:
      left = f'{target} has {_saved(target)}; {how}'
      reporter.line(f'Interrupted after {step}; {left}')
      return False
    if this.now.stopped:
      msg = (
        f'{config.method} diverged at {step}: {this.now.stopped}; {target} has '
        f'{METRICS} up to this step and {_saved(target)}; try a smaller '
        f'--learning-rate or --rho, or --clip-norm'
      )
      raise errors.DivergedError(msg)
    skipped = sum(map(int, processes.gather(str(problem.inputs.skipped))))
    if skipped:
      reporter.line(f'Images skipped as corrupt: {skipped}.')
    reporter.line(f'Run: {target}')
  return True


def method_settings(config: configs.TrainConfig) -> dict[str, Any]:
  """Returns the method's complete settings, after building it once."""
  name = config.method
  settings = build.method_settings([name], config)[name]
  if build.method(name).row.place == 'outside' and config.dataset == 'imagenet':
    msg = (
      f'--method {name} validates on held-out training examples, '
      f'which {config.dataset} does not have; train on digits or '
      f'mnist1d, or call optax_sam.{name} in your own training loop'
    )
    raise ValueError(msg)
  return settings


def saved_steps(target: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints that are complete."""
  paths = (target / CHECKPOINTS).glob('[0-9]*')
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _saved(target: pathlib.Path) -> str:
  steps = ', '.join(map(str, saved_steps(target)))
  return f'checkpoints of steps {steps}' if steps else 'no checkpoint'


def _check_output(config: configs.TrainConfig) -> None:
  """Raises a ValueError if the output cannot be written, or resumed."""
  if not config.resume:
    if config.output is not None:
      output_dir.check(config.output, overwrite=config.overwrite, known=FILES)
    return
  former = output_dir.read_run(config.output, '--output ')
  target: Any = config.output  # checked by `read_run`
  for name in FILES & {path.name for path in target.iterdir()}:
    if (target / name).is_dir() != (name == CHECKPOINTS):
      msg = f'--output {target}: {name} is not of optax-sam; remove it'
      raise ValueError(msg)
  before, now = configs.settings(former), configs.settings(config)
  different = configs.differences(before, now, now.keys() - {'steps'})
  if config.epochs is None and config.steps < former.steps:
    different.append(f'steps was {former.steps} and can only grow')
  if different:
    msg = f'--resume under another configuration: {"; ".join(different)}'
    raise ValueError(msg)


@contextlib.contextmanager
def _opened(
  config: configs.TrainConfig, target: pathlib.Path
) -> Iterator[None]:
  """Holds the directory of the run, new, emptied or to resume."""
  with output_dir.opened(
    target, known=FILES, overwrite=config.overwrite, resume=config.resume
  ):
    if config.resume:
      _check_output(config)
    else:
      output_dir.clear(target, FILES)
      output_dir.write_run(target, config)
    try:
      yield
    except BaseException:
      nothing = not (saved_steps(target) or (target / METRICS).exists())
      if nothing and not config.resume:
        output_dir.clear(target, FILES)
      raise


def _check_shared(target: pathlib.Path) -> None:
  if output_dir.read_config(target) is None:
    msg = (
      f'--output {target} of process 0 is not visible to this process; give a '
      f'directory on a file system that all processes share'
    )
    raise ValueError(msg)


@dataclasses.dataclass
class _Run:
  """A run, and its progress from the start or from a checkpoint."""

  config: configs.TrainConfig
  trainer: Trainer
  target: pathlib.Path
  reporter: progress.Reporter
  now: Progress

  def restore(self, checkpoints: Checkpoints) -> None:
    """Resumes from the last checkpoint, possibly with more steps."""
    say, config, target = self.reporter.line, self.config, self.target
    found = checkpoints.restore(self.now.state, say)
    if found is None:
      say('Resuming from the start, there is no checkpoint yet.')
    else:
      say(f'Resuming from the checkpoint of step {found.step}.')
      self.now = found

    def prolong() -> None:
      """Removes the results of a run that was finished with fewer steps."""
      if output_dir.read_run(target).steps != config.steps:
        output_dir.write_run(target, config)
        for name in (METRICS, PAGE):
          (target / name).unlink(missing_ok=True)

    processes.on_first(prolong)

  def train(self, checkpoints: Checkpoints) -> bool:
    """Trains and saves checkpoints; returns whether the run is finished."""
    with self.reporter.phase('Compiling', 1) as phase:
      self.trainer.compile()
      phase.advance()
    with (
      self.reporter.phase('Training', self.config.steps) as phase,
      _interrupts_between_steps() as interrupted,
    ):
      phase.advance(self.now.step)
      measured = self.trainer.task.objective.measured

      def after_step(now: Progress) -> None:
        phase.advance()
        due = now.step % self.config.checkpoint_every == 0
        if due and not now.stopped:
          checkpoints.save(now)
        for row in now.evaluations[-1:]:
          if row['step'] == now.step:
            shown = objectives.shown(measured, row)
            self.reporter.line(f'  step {now.step}: {shown}')
        if processes.should_stop(now.step, interrupted.is_set()):
          checkpoints.save(now)
          raise KeyboardInterrupt

      try:
        self.trainer.run(self.now, self.config.seed, after_step)
      except KeyboardInterrupt:
        return False  # a second Ctrl-C: not saved, the step may be incomplete
      if not self.now.stopped:
        checkpoints.save(self.now)
      return True

  def measure(self, command: str, started: dt.datetime) -> None:
    """Measures sharpness, unless the run diverged; writes its results."""
    now, config, target = self.now, self.config, self.target
    sharpness: Row = {}
    last: dict[str, Any] = {'kind': 'diverged', 'step': now.step}
    if now.stopped:
      last['reason'] = now.stopped
    else:
      sharpness = self.trainer.measure_sharpness(now.state)
      last = {'kind': 'sharpness', **sharpness}
    kinds = {'log': now.log, 'validation': now.validations}
    kinds['evaluation'] = now.evaluations
    rows = [{'kind': kind, **x} for kind, part in kinds.items() for x in part]
    # msgspec writes NaN and infinity, which JSON lacks, as null.
    lines = msgspec.json.Encoder().encode_lines([*rows, last])
    processes.on_first(lambda: output_dir.write(target / METRICS, lines))
    # The time of a resumed run is that of more than one process.
    spent = dt.datetime.now().astimezone() - started
    seconds = max(0.0, spent.total_seconds())  # clocks may be set back
    seconds = math.nan if config.resume else seconds
    run = results.Run(
      method=config.method,
      seed=config.seed,
      settings=self.trainer.settings,
      log=now.log,
      evaluations=now.evaluations,
      sharpness=sharpness,
      seconds=seconds,
      validations=now.validations,
      stopped=now.stopped,
    )
    page = results.Comparison(
      settings=configs.settings(config),
      command=command,
      base=config.method,
      runs=[run],
      started=started.isoformat(timespec='seconds'),
      seconds=seconds,
      total_steps=config.steps,
      test_examples=self.trainer.task.inputs.test_examples,
      sharpness_radius=config.sharpness_radius,
      metric=self.trainer.task.objective.measured,
    )
    text = comparison_report.render_page(page).encode()
    processes.on_first(lambda: output_dir.write(target / PAGE, text))
    if not now.stopped:
      taken = int(now.log[-1]['second_gradients'])
      self.reporter.line(
        f'{config.method}: {taken} of {now.step} steps took a perturbed '
        f'gradient; SAM sharpness at rho={config.sharpness_radius}: '
        f'{sharpness["sam_sharpness"]:.3g}; '
        f'top eigenvalue: {sharpness["top_eigenvalue"]:.3g}'
      )


@contextlib.contextmanager
def _interrupts_between_steps() -> Iterator[threading.Event]:
  """Yields an event that Ctrl-C or SIGTERM sets; a second one stops at once."""
  event = threading.Event()

  def handle(*_: object) -> None:
    repeated = errors.is_repeated_signal()
    if event.is_set():
      if not repeated:
        processes.stop_at_once()
      return
    event.set()
    processes.interrupt()

  if threading.current_thread() is not threading.main_thread():
    yield event  # only the main thread may install a handler
    return
  heard = errors.heard_signals()
  if jax.process_count() > 1:  # JAX handles SIGTERM and notifies the others
    heard &= {signal.SIGINT}
  former = {number: signal.signal(number, handle) for number in heard}
  try:
    yield event
  finally:
    for number, handler in former.items():
      signal.signal(number, handler)
