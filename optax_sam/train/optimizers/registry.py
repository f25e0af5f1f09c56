"""The registry: methods of the catalog with properties for the trainer.

A new method of the catalog needs an entry here only if a default of `Method`,
or what is derived from its row, is wrong for it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax

import optax_sam
from optax_sam import catalog
from optax_sam.train.optimizers import accuracy_schedule, weight_averaging


@dataclasses.dataclass(frozen=True)
class Method:
  """The trainer's description of a method.

  Attributes:
    row: the row of the catalog.
    factory: the function that builds it, or its `ValidatedAveraging`.
    uses_gradient: whether it reads the unperturbed gradient of the batch.
    takes_per_example_losses: whether it differentiates per-example losses, for
      which batch norm must use its running statistics.
    defaults: values that differ from those of factory and row, or rules.
    base_steps: the setting with the number of base optimizer steps in a step.
    solution: maps parameters and optimizer state to the solution of the run, if
      that differs from the trained parameters.
  """

  row: catalog.Method
  factory: Callable[..., Any]
  uses_gradient: bool = True
  takes_per_example_losses: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  base_steps: str | None = None
  solution: Callable[[optax.Params, Any], optax.Params] | None = None

  @property
  def skips(self) -> bool:
    """Whether it skips the ascent step in some steps."""
    return self.row.group == 'some steps'

  @property
  def reports(self) -> bool:
    """Whether `optax_sam.metrics` finds metrics in its state."""
    return bool(self.row.needs)


# The authors' rule. Open points, and differences to their code:
# - The rule does not define the training accuracy. One of their programs passes
#   over the training set after each epoch, another averages over the training
#   batches of the epoch, both in training mode. Here it is measured after the
#   epoch in evaluation mode; the docstring of the class explains why.
# - They round k down; a fraction of the batch is rounded to the nearest here.
# - They also halve the learning rate when k falls at 99.5 %, which the rule
#   doesn't mention; here all methods of a comparison share one schedule.
_SHARE_OF_LARGEST_LOSSES = accuracy_schedule.ByTrainingAccuracy(
  1.0, ((0.8, 1 / 2), (0.9, 1 / 4), (0.95, 1 / 8), (0.995, 1 / 16))
)
# The other methods of their groups, and those that need examples, do without.
_USE_GRADIENT = frozenset({'esam', 'sparse_sam_fisher'})
# Attributes of `Method` that differ from their defaults.
_SPECIAL: dict[str, dict[str, Any]] = {
  'anti_pgd': {'solution': optax_sam.without_noise},
  'entropy_sgd': {'solution': optax_sam.outer_params},
  'lookbehind': {'base_steps': 'steps'},
  'ordered_sgd': {'defaults': {'k': _SHARE_OF_LARGEST_LOSSES}},
  'sparse_sam_fisher': {'takes_per_example_losses': True},
  # It reads a part, and would not save the rest if a metric reads all.
  'sparse_sam_layers': {'uses_gradient': False},
  'swa': {
    'factory': weight_averaging.swa,
    'solution': optax_sam.averaged_params,
  },
  'swad': {'factory': weight_averaging.swad},
}


def _method(row: catalog.Method) -> Method:
  needs_none = row.group == 'one gradient' or row.needs == 'examples'
  given: dict[str, Any] = {
    'factory': row.function,
    'uses_gradient': row.name in _USE_GRADIENT or not needs_none,
  }
  return Method(row, **given | _SPECIAL.get(row.name, {}))


# Auxiliary losses are registered without the ending of their names.
METHODS: dict[str, Method] = {
  name.removesuffix('_loss'): _method(row)
  for name, row in catalog.METHODS.items()
}
METHODS['sam_on'] = Method(
  dataclasses.replace(
    catalog.METHODS['sam'],
    title='SAM-ON',
    paper=catalog.Paper('Mueller et al.', 2023, '2306.04226'),
    gradients='2',
  ),
  factory=functools.partial(
    optax_sam.sam, rho=0.5, mask=optax_sam.norm_layers_only
  ),
)

# Base optimizers that are functions of the learning rate.
BASES: dict[str, Callable[[Any], optax.GradientTransformation]] = {}


def own(name: str, given: Any, *, reports: bool) -> Method:
  """Returns a method that is not in the catalog."""
  is_function = not isinstance(given, optax.GradientTransformation)
  row = dataclasses.replace(
    catalog.METHODS['sam'],
    title=name,
    # Whether it skips steps is known from its metrics only.
    group='some steps' if reports else 'every step',
    needs='value_fn' if reports else '',
    place='wraps' if is_function else 'chain',
    radius=None,
  )
  factory = (lambda base: given(base)) if is_function else (lambda: given)
  return Method(row, factory)


@contextlib.contextmanager
def added(
  methods: Mapping[str, Method], bases: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
  """Adds methods and base optimizers, which may replace others, for a while."""
  former = METHODS.copy(), BASES.copy()
  METHODS.update(methods)
  BASES.update(bases)
  try:
    yield
  finally:
    registries: Any = zip((METHODS, BASES), former, strict=True)
    for registered, before in registries:
      registered.clear()
      registered.update(before)
