"""The search for settings on validation examples."""

import copy
import dataclasses
import functools
import inspect
import math
import threading
from collections.abc import Mapping
from typing import Any

import optax

from optax_sam.train.commands import progress
from optax_sam.train.comparison import threads
from optax_sam.train.comparison.search import Point, Score, search
from optax_sam.train.comparison.store import Settings, Store
from optax_sam.train.config import configs
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.registry import METHODS
from optax_sam.train.reports.results import Trial

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
RADIUS, RATE = 'radius', 'learning_rate'
# Of parameters and order of the examples; no run of a comparison has this seed.
SEED = 2**20


def check(config: configs.CompareConfig, settings: Settings) -> None:
  """Raises a ValueError if the flags of a search are invalid."""
  allowed = [RADIUS, RATE]
  for name, own in settings.items():
    allowed += [f'{name}.{key}' for key in dict.fromkeys((RATE, *own))]
  for text in config.tune or ():
    if text not in allowed:
      msg = f'--tune {text!r} must be one of {", ".join(allowed)}'
      raise ValueError(msg)
  for name, own in settings.items():
    for key, value in start(config, name, own).items():
      number = isinstance(value, int | float) and not isinstance(value, bool)
      if not (number and 0 < value < math.inf):
        msg = (
          f'--tune: {name}.{key} is {value!r}, but the search multiplies it by '
          f'powers of 2; give a start above 0 with --set {name}.{key}=...'
        )
        raise ValueError(msg)


def start(
  config: configs.CompareConfig, name: str, own: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the settings that a method tunes, and where the search starts.

  If no setting is named, these are radius and learning rate. A method without
  any of the named settings tunes its radius, or without a radius its learning
  rate. So every method, and the base, has a search.
  """
  values = {RATE: configs.learning_rate(config), **own}
  radius = build.method(name).row.radius
  default = radius if radius in own else RATE
  asked = {RATE: RATE, RADIUS: default} | {
    f'{name}.{key}': key for key in values
  }
  wanted = [asked[text] for text in config.tune or () if text in asked]
  if not config.tune:
    wanted = [default, RATE]
  return {key: values[key] for key in wanted or [default]}


def split(config: configs.CompareConfig, task: Task) -> tuple[Task, Task]:
  """Returns the task without the validation examples, and that of the search.

  The test examples of the second one are the validation examples, so a search
  cannot read those of the comparison. They are the dataset's own, or else a
  fraction of the training examples, of each class alike.
  """
  data = task.inputs
  if not isinstance(data, inputs.InMemory):
    msg = f'--tune needs a dataset in memory, not {config.dataset}'
    raise ValueError(msg)
  train, held_out = data.dataset.train, data.dataset.validation
  if held_out is None:
    train, held_out = datasets.hold_out(train, config.validation, seed=0)
  left = len(train['labels'])
  if not len(held_out['labels']):
    msg = f'--validation {config.validation} holds out no example; increase it'
    raise ValueError(msg)
  which = f' that --validation {config.validation} leaves'
  inputs.check_count('batch-size', config.batch_size, left, which)

  def changed(test: Any) -> Task:
    dataset = dataclasses.replace(data.dataset, train=train, test=test)
    made = inputs.InMemory(dataset, data.batch_size)
    made.classes = data.classes  # may be that of the model
    return dataclasses.replace(task, inputs=made)

  return changed(data.dataset.test), changed(held_out)


def tune(
  config: configs.CompareConfig,
  task: Task,
  settings: Settings,
  reporter: progress.Reporter,
  stored: Store,
) -> Settings:
  """Returns the settings of all methods, with those of the best trials.

  The base optimizer is tuned first. The methods use its learning rate, or start
  from it if they tune their own. A method that has a learning rate among its
  settings uses that. The searches of the methods are independent and run in
  threads.
  """
  chosen: Settings = {}
  stop = threading.Event()

  def search_for(name: str) -> None:
    own = settings[name]
    if name != config.base and RATE in chosen[config.base]:
      own = {RATE: chosen[config.base][RATE]} | own
    trials = Trials(config, task, name, own, stored, stop)
    best, score, tried = search(
      trials.score, len(trials.start), config.trials, trials.is_allowed
    )
    chosen[name] = own | trials.values(best)
    reporter.line(trials.summary(best, score, tried))

  base, *others = settings
  with reporter.phase('Tuning', len(settings)) as phase:
    for names in ([base], others):
      jobs = [functools.partial(search_for, name) for name in names]
      threads.together(jobs, stop=stop, done=phase.advance)
  return {name: chosen[name] for name in settings}


@dataclasses.dataclass
class Trials:
  """The trials of a method: training runs with other settings."""

  config: configs.CompareConfig
  task: Task
  name: str
  own: dict[str, Any]  # its complete settings
  stored: Store
  stop: threading.Event
  _points: dict[Any, Point] = dataclasses.field(default_factory=dict)
  _trainers: dict[Any, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def start(self) -> dict[str, Any]:
    """The settings to tune, and their values at the start."""
    return start(self.config, self.name, self.own)

  def values(self, point: Point) -> dict[str, Any]:
    """Returns the settings at a point."""
    found: dict[str, Any] = {}
    for (key, value), exponent in zip(self.start.items(), point, strict=True):
      moved = value * 2**exponent
      # A radius of 1 is a float too. Floats are short enough to be typed.
      is_float = key in (RATE, build.method(self.name).row.radius)
      is_int = isinstance(value, int) and not is_float
      found[key] = max(1, round(moved)) if is_int else float(f'{moved:.3g}')
    return found

  def is_allowed(self, point: Point) -> bool:
    """Whether a point has new values that the method accepts."""
    values = self.values(point)
    if self._points.setdefault(tuple(values.values()), point) != point:
      return False  # other integers round to the same values
    try:
      build.optimizer(self.name, self.own | values, self.config, seed=SEED)
    except ValueError:
      return False
    return True

  def score(self, point: Point) -> Score:
    """Returns metric and loss on the validation examples, higher is better."""
    values = self.values(point)
    for trial in self.stored.trials:
      if (trial.method, trial.settings) == (self.name, values):
        break
    else:
      trial = self._train(values)
      self.stored.add_trial(trial)
    sign = self.task.objective.measured.sign
    return sign * trial.validation_metric, -trial.validation_loss

  def _train(self, values: dict[str, Any]) -> Trial:
    traced = traced_settings(self.name, values)
    static = {key: x for key, x in values.items() if key not in traced}
    place = tuple(static.items())
    if place not in self._trainers:
      config = dataclasses.replace(self.config, evaluations=0)
      self._trainers[place] = TracedTrainer(
        config, self.task, self.name, self.own | static
      )
    trainer: TracedTrainer = self._trainers[place]
    trainer.traced = traced
    end = trainer.start(SEED)
    trainer.run(end, SEED, lambda _: threads.check(self.stop))
    examples = self.task.inputs.test()
    loss, value = trainer.evaluate(*trainer.solution(end.state), examples)
    lost = end.stopped or not math.isfinite(loss)
    return Trial(
      method=self.name,
      settings=values,
      seed=SEED,
      validation_loss=loss,
      validation_metric=math.nan if lost else value,
    )

  def summary(self, best: Point, score: Score, points: list[Point]) -> str:
    """Returns the line that says what was tried, and what is best."""
    tried = [self.values(point) for point in points]
    parts = [
      f'{key}={value} (tried {min(each[key] for each in tried):g} to '
      f'{max(each[key] for each in tried):g})'
      for key, value in self.values(best).items()
    ]
    metric = self.task.objective.measured
    value = metric.sign * score[0]
    if not math.isfinite(value):
      return f'  {self.name}: all trials diverged; it uses {", ".join(parts)}'
    return (
      f'  {self.name}: {", ".join(parts)}, validation {metric.title} '
      f'{metric.text(value)}'
    )


def traced_settings(name: str, values: dict[str, Any]) -> dict[str, float]:
  """Returns the settings that a compiled step may take as arguments."""
  method = METHODS.get(name)
  # The optimizer does not read settings of losses and averages.
  is_read = method is None or method.row.is_transformation
  fixed = () if method is None else (*method.row.static, *method.static)
  return {
    key: value
    for key, value in values.items()
    if isinstance(value, float)
    and (key == RATE or (is_read and key not in fixed))
  }


class TracedTrainer(Trainer):
  """A trainer whose state has some settings: their values share a step."""

  traced: Mapping[str, float]  # these settings, for the next start

  def optimizer(self, seed: int) -> optax.GradientTransformation:
    """Returns method and base, which read these settings from the state."""

    def made(**values: Any) -> optax.GradientTransformation:
      other = copy.copy(self)
      other.settings = self.settings | values
      return Trainer.optimizer(other, seed)

    named = [inspect.Parameter(name, _KEYWORD) for name in self.traced]
    vars(made)['__signature__'] = inspect.Signature(named)
    return optax.inject_hyperparams(made)(**self.traced)
