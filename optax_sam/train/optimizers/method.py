"""The trainer's description of a method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from optax_sam import catalog


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the registry.

  Attributes:
    row: the row of the catalog.
    factory: the function that builds it. The trainer sets the arguments named
      `total_steps`, `refresh_every`, `key`, `base`, `batch_like` and
      `num_data`, and `learning_rate` with a schedule: if the method wraps the
      base optimizer, that of the base; if it replaces it, a schedule up to the
      setting `learning_rate`. A method outside of the optimizer returns a
      `ValidatedAveraging`.
    uses_gradient: whether it reads the unperturbed gradient of the batch.
    takes_per_example_losses: whether it differentiates per-example losses, for
      which batch norm must use its running statistics.
    defaults: the trainer's values of arguments that have no default. A value
      may be a rule that follows the training accuracy.
    base_steps: the setting with the number of base optimizer steps in a step;
      None for one.
    reports: whether `optax_sam.metrics` finds metrics in its state.
    solution: maps the parameters and the optimizer state to the solution of the
      run, if it differs from the trained parameters. A `ValidatedAveraging` has
      its own function for that.
  """

  row: catalog.Method
  factory: Callable[..., Any]
  uses_gradient: bool = True
  takes_per_example_losses: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  base_steps: str | None = None
  reports: bool = True
  solution: Callable[[optax.Params, Any], optax.Params] | None = None

  @property
  def skips(self) -> bool:
    """Whether it skips the ascent step in some steps."""
    return self.row.group == 'some steps'
