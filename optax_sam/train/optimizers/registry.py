"""The registry: methods of the catalog with properties for the trainer.

A new method of the catalog needs a row here only if a default of
`optax_sam.train.optimizers.method.Method` is wrong for it.
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
from optax_sam.train.optimizers.method import Method

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

# Attributes of `Method` that differ from their defaults.
_SPECIAL: dict[str, dict[str, Any]] = {
  'anti_pgd': {
    'defaults': {'sigma': 0.01},
    'reports': False,
    'solution': optax_sam.without_noise,
  },
  'b_sam': {'uses_gradient': False},
  'entropy_sgd': {'reports': False, 'solution': optax_sam.outer_params},
  'k_sam': {
    'uses_gradient': False,
    'defaults': {'ascent': 1 / 3, 'descent': 1 / 3},
  },
  'lookbehind': {'base_steps': 'steps'},
  'lpf_sgd': {'uses_gradient': False},
  'm_sam': {'uses_gradient': False, 'defaults': {'micro_batch_size': 32}},
  'mesa_loss': {'reports': False},
  'momentum_sam': {'uses_gradient': False},
  'ordered_sgd': {
    'uses_gradient': False,
    'defaults': {'k': _SHARE_OF_LARGEST_LOSSES},
  },
  'saf_loss': {'reports': False},
  'sampa': {'uses_gradient': False},
  'sparse_sam_fisher': {'takes_per_example_losses': True},
  'subset_sam': {'uses_gradient': False},
  'swa': {
    'factory': weight_averaging.swa,
    'reports': False,
    'solution': optax_sam.averaged_params,
  },
  'swad': {'factory': weight_averaging.swad, 'reports': False},
  'unnormalized_sam': {'defaults': {'rho': 0.05}},
}


def _method(row: catalog.Method) -> Method:
  given: dict[str, Any] = {'factory': row.function}
  given |= _SPECIAL.get(row.name, {})
  return Method(row, **given)


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
  """Returns a method that is not in the catalog.

  Args:
    name: its name.
    given: a gradient transformation, which is placed before the base optimizer,
      or a function from the base optimizer to the complete optimizer.
    reports: whether `optax_sam.metrics` finds metrics in its state.
  """
  is_function = not isinstance(given, optax.GradientTransformation)
  row = dataclasses.replace(
    catalog.METHODS['sam'],
    title=name,
    # Whether it skips steps is known from its metrics only.
    group='some steps' if reports else 'every step',
    place='wraps' if is_function else 'chain',
    radius=None,
  )
  factory = (lambda base: given(base)) if is_function else (lambda: given)
  return Method(row, factory, reports=reports)


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
    METHODS.clear()
    METHODS.update(former[0])
    BASES.clear()
    BASES.update(former[1])
