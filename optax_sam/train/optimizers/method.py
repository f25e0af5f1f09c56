"""What the trainer knows of a method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the registry.

  Attributes:
    factory: the public function that builds it. Arguments
      named `total_steps`, `refresh_every`, `key`, `base`, `batch_like` and
      `num_data` are filled by the trainer, and `learning_rate` with a schedule.
    gradients: gradients per step, s the share of steps that ascend.
    state: what it keeps beside a step counter.
    paper: where it was published.
    skips: whether some of its steps take no second gradient.
    uses_gradient: whether it reads the clean gradient of the whole batch.
    takes_single_examples: whether it differentiates the losses of examples one
      by one, for which batch norm must use its running statistics.
    defaults: the trainer's values of arguments that have no default; a value
      may be a rule that follows the training accuracy.
    place: where it stands. 'before' the base optimizer and 'after' it are the
      first and the last element of a chain; 'around' it takes `base`, and its
      `learning_rate` is that of the base; 'instead' of it stands an optimizer
      of its own, whose `learning_rate` is a setting, the highest of the run.
      'loss' is a term of the loss, under the base optimizer alone, and
      'beside' that a `ValidatedAveraging`.
    base_steps: the setting that says how many steps of the base optimizer one
      step takes; None for one.
    reports: whether `optax_sam.metrics` finds something in its state.
    solution: from the parameters and the state of the optimizer to the
      parameters that the run has found, where they are others than those that
      it trains. What stands beside the optimizer has its own.
  """

  factory: Callable[..., Any]
  gradients: str
  state: str
  paper: str
  skips: bool = False
  uses_gradient: bool = True
  takes_single_examples: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  place: Literal['before', 'around', 'instead', 'after', 'loss', 'beside'] = (
    'before'
  )
  base_steps: str | None = None
  reports: bool = True
  solution: Callable[[optax.Params, Any], optax.Params] | None = None
