"""The search for settings on validation examples."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from optax_sam.train.commands import progress
from optax_sam.train.comparison import threads
from optax_sam.train.comparison.search import search
from optax_sam.train.comparison.trials import Trials
from optax_sam.train.config import configs
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.trainer import Progress
from optax_sam.train.optimizers.registry import METHODS
from optax_sam.train.reports.results import Trial

RADIUS, RATE = 'radius', 'learning_rate'

Settings = dict[str, dict[str, Any]]


def check(config: configs.CompareConfig, settings: Settings) -> None:
  """Raises a ValueError if the flags of a search are invalid.

  Args:
    config: the configuration, with `tune`.
    settings: complete settings of each method, base optimizer first.
  """
  if config.trials < 2:
    msg = f'--trials must be at least 2, not {config.trials}'
    raise ValueError(msg)
  if not 0 < config.validation < 1:
    msg = f'--validation must be above 0 and below 1, not {config.validation}'
    raise ValueError(msg)
  for text in config.tune or ():
    method, dot, setting = text.rpartition('.')
    if text not in (RADIUS, RATE) and not (dot and method in settings):
      msg = (
        f'--tune {text!r} must be {RADIUS}, {RATE} or METHOD.SETTING with a '
        f'method of this run ({", ".join(settings)})'
      )
      raise ValueError(msg)
    if dot and setting not in {RATE, *settings[method]}:
      allowed = ', '.join({RATE: 0.0} | settings[method])
      msg = f'--tune {text}: choose a setting of {method} among {allowed}'
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

  A method without any of the named settings tunes its radius, or without a
  radius its learning rate. So every method, and the base, has a search.

  Args:
    config: the configuration.
    name: the method.
    own: its complete settings.
  """
  values = {RATE: configs.learning_rate(config), **own}
  radius = METHODS[name].row.radius if name in METHODS else None
  wanted = []
  for text in config.tune or (RADIUS,):
    method, dot, setting = text.rpartition('.')
    if dot and method == name:
      wanted.append(setting)
    elif text == RATE:
      wanted.append(RATE)
    elif text == RADIUS and radius in own:
      wanted.append(radius)
  wanted = wanted or [radius if radius in own else RATE]
  return {key: values[key] for key in dict.fromkeys(wanted)}


def split(config: configs.CompareConfig, task: Task) -> tuple[Task, Task]:
  """Returns the task without the validation examples, and that of the search.

  The test examples of the second one are the validation examples, so a search
  cannot read those of the comparison. They are the dataset's own, or else a
  fraction of the training examples, of each class alike.

  Args:
    config: the configuration.
    task: the task with all training examples, in memory.

  Raises:
    ValueError: if there are too few examples.
  """
  data = task.inputs
  if not isinstance(data, inputs.InMemory):
    msg = f'--tune needs a dataset in memory, not {config.dataset}'
    raise ValueError(msg)
  train, held_out = data.dataset.train, data.dataset.validation
  if held_out is None:
    train, held_out = datasets.hold_out(train, config.validation, seed=0)
  examples, left = len(held_out['labels']), len(train['labels'])
  if not examples:
    msg = f'--validation {config.validation} holds out no example; give more'
    raise ValueError(msg)
  if config.batch_size > left:
    msg = (
      f'--batch-size must be at most {left}, the number of training examples '
      f'that --validation {config.validation} leaves, not {config.batch_size}'
    )
    raise ValueError(msg)
  rest = dataclasses.replace(data.dataset, train=train)
  searched = dataclasses.replace(rest, test=held_out)
  return _with_data(task, data, rest), _with_data(task, data, searched)


def tune(
  config: configs.CompareConfig,
  task: Task,
  settings: Settings,
  reporter: progress.Reporter,
  trials: list[Trial],
  save: Callable[[Trial], None] = lambda _: None,
) -> Settings:
  """Returns the settings of all methods, with those of the best trials.

  The base optimizer comes first. The methods take its learning rate, those that
  tune their own start from it. A method with a learning rate among its settings
  keeps it. The searches of the methods are independent and run in threads.

  Args:
    config: the configuration.
    task: the task of the search, the second one of `split`.
    settings: complete settings of each method, base optimizer first.
    reporter: shows the progress.
    trials: the finished trials, which are not repeated; new ones are appended.
    save: called with each new trial.
  """
  chosen: Settings = {}
  stop, lock = threading.Event(), threading.Lock()

  def keep(trial: Trial) -> None:
    with lock:
      trials.append(trial)
      save(trial)

  def after_step(current: Progress) -> None:
    del current
    if stop.is_set():
      raise threads.StoppedError

  def search_for(name: str) -> None:
    own = settings[name]
    if name != config.base and RATE in chosen[config.base]:
      own = {RATE: chosen[config.base][RATE]} | own
    axes = start(config, name, own)
    trained = Trials(config, task, name, own, axes, trials, keep, after_step)
    found = search(trained.score, len(axes), config.trials, trained.is_allowed)
    chosen[name] = own | trained.values(found.best)
    reporter.line(trained.summary(found))

  base, *others = settings
  with reporter.phase('Tuning', len(settings)) as phase:
    for names in ([base], others):
      phase.detail(', '.join(names))
      jobs = [lambda name=name: search_for(name) for name in names]
      threads.together(jobs, stop=stop, done=phase.advance)
    phase.detail('')
  return {name: chosen[name] for name in settings}


def _with_data(
  task: Task, data: inputs.InMemory, dataset: datasets.Dataset
) -> Task:
  changed = inputs.InMemory(dataset, data.batch_size)
  changed.classes = data.classes  # may be that of the model
  return dataclasses.replace(task, inputs=changed)
