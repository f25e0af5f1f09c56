"""The trials of a method: training runs with other settings."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from optax_sam.train.comparison.search import Found, Point, Score
from optax_sam.train.config import configs
from optax_sam.train.loop import evaluation
from optax_sam.train.loop.task import Task
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.optimizers import build
from optax_sam.train.optimizers.registry import METHODS
from optax_sam.train.reports.results import Trial

# Of parameters and order of the examples; no run of a comparison has this seed.
SEED = 2**20


class Trials:
  """The trials of one method."""

  def __init__(
    self,
    config: configs.CompareConfig,
    task: Task,
    name: str,
    own: dict[str, Any],
    start: dict[str, Any],
    trials: list[Trial],
    save: Callable[[Trial], None],
    after_step: Callable[[Progress], None],
  ) -> None:
    """Prepares the trials.

    Args:
      config: the configuration.
      task: the task of the search.
      name: the method.
      own: its complete settings.
      start: the settings to tune, and their values at the start.
      trials: the finished trials of all methods.
      save: called with each new trial.
      after_step: called after every step.
    """
    self.config, self.task, self.name, self.own = config, task, name, own
    self.trials, self.save, self.after_step = trials, save, after_step
    self.start = start
    self.metric = task.objective.measured
    self._allowed: dict[tuple[Any, ...], Point] = {}
    self._trainers: dict[Any, TracedTrainer] = {}

  def values(self, point: Point) -> dict[str, Any]:
    """Returns the settings at a point."""
    return {
      key: max(1, round(value * 2**exponent))
      if isinstance(value, int)
      else float(f'{value * 2**exponent:.3g}')  # short enough to be typed
      for (key, value), exponent in zip(self.start.items(), point, strict=True)
    }

  def is_allowed(self, point: Point) -> bool:
    """Whether a point has new values that the method accepts."""
    values = self.values(point)
    if self._allowed.setdefault(tuple(values.values()), point) != point:
      return False  # other integers round to the same values
    try:
      build.optimizer(self.name, self.own | values, self.config, seed=SEED)
    except ValueError:
      return False
    return True

  def score(self, point: Point, length: float) -> Score:
    """Returns metric and loss on the validation examples, higher is better."""
    values = self.values(point)
    steps = max(1, round(length * self.config.steps))
    key = (self.name, values, steps, SEED)
    for trial in self.trials:
      if (trial.method, trial.settings, trial.steps, trial.seed) == key:
        break
    else:
      trial = self._train(values, steps)
      self.save(trial)
    sign = 1 if self.metric.higher_is_better else -1
    return sign * trial.validation_metric, -trial.validation_loss

  def _train(self, values: dict[str, Any], steps: int) -> Trial:
    row = METHODS[self.name].row if self.name in METHODS else None
    traced = {
      key: value
      for key, value in values.items()
      if isinstance(value, float) and (row is None or key not in row.static)
    }
    static = {key: x for key, x in values.items() if key not in traced}
    place = (steps, *static.items())
    if place not in self._trainers:
      config = dataclasses.replace(self.config, steps=steps, evaluations=0)
      self._trainers[place] = TracedTrainer(
        config, self.task, self.name, self.own | static
      )
    trainer = self._trainers[place]
    trainer.traced = traced
    current = trainer.start(SEED)
    trainer.run(current, SEED, self.after_step)
    solution, examples = (
      trainer.solution(current.state),
      self.task.inputs.test(),
    )
    loss, value = evaluation.evaluate(
      self.task, *solution, examples, trainer.placement
    )
    diverged = current.stopped or not math.isfinite(loss)
    return Trial(
      method=self.name,
      settings=values,
      seed=SEED,
      steps=steps,
      validation_loss=loss,
      validation_metric=math.nan if diverged else value,
      second_gradients=current.log[-1]['second_gradients'] / current.step,
    )

  def summary(self, found: Found) -> str:
    """Returns the line that says what was tried, and what is best."""
    tried = [self.values(point) for point in found.tried]
    best = self.values(found.best)
    parts = [
      f'{key}={best[key]} (tried {min(each[key] for each in tried):g} to '
      f'{max(each[key] for each in tried):g})'
      for key in best
    ]
    value = abs(found.score[0])
    shown = f'{100 * value:.2f} %' if self.metric.percent else f'{value:.4g}'
    name = self.metric.name.replace('_', ' ')
    text = f'  {self.name}: {", ".join(parts)}, validation {name} {shown}'
    if not math.isfinite(value):
      text = f'  {self.name}: all trials diverged; it keeps {", ".join(parts)}'
    if found.at_edge:
      text += '; it is at the edge, more --trials may find a better one'
    return text


class TracedTrainer(Trainer):
  """A trainer whose state has some settings, so that all values share a step.

  Attributes:
    traced: the values of these settings, for the next start.
  """

  traced: Mapping[str, float]

  def optimizer(
    self, seed: int, accuracy: float = 0.0
  ) -> optax.GradientTransformation:
    """Returns method and base, which read these settings from the state."""

    def made(values: Mapping[str, Any]) -> Any:
      other = copy.copy(self)
      other.settings = {**self.settings, **values}
      built = Trainer.optimizer(other, seed, accuracy)
      return optax.with_extra_args_support(built)

    def init(params: optax.Params) -> Any:
      values = {key: jnp.asarray(x) for key, x in self.traced.items()}
      return values, made(self.traced).init(params)

    def update(
      updates: optax.Updates, state: Any, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
      values, inner = state
      updates, inner = made(values).update(updates, inner, params, **extra)
      return updates, (values, inner)

    return optax.GradientTransformationExtraArgs(init, update)
