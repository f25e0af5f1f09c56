"""The registry: methods of the catalog with properties for the trainer.

A new method of the catalog needs an entry here only if a default of `Method`,
or what is derived from its row, is wrong for it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import optax

import optax_sam
import optax_sam.lora
from optax_sam import catalog, validation
from optax_sam.engine import info
from optax_sam.methods.anti_pgd import AntiPgdState
from optax_sam.methods.entropy_sgd import EntropySgdState
from optax_sam.methods.swa import SwaState
from optax_sam.methods.swad import Swad


class ValidatedAveraging(NamedTuple):
  """An average of the weights that depends on validation losses.

  `accumulate` of its functions is part of each step, `validate` is called after
  the last step of an epoch, and `result` returns the solution of a run.
  """

  functions: Swad
  held_out: float  # fraction of the training examples
  epochs: int  # between validations


def _late_sam(
  rho: float = 0.05, *, start: float = 0.75, end: float = 1.0, total_steps: int
) -> optax.GradientTransformationExtraArgs:
  """SAM in a part of the run, from one fraction of its steps to another.

  Args:
    rho: the radius.
    start: fraction of the run before the first step of SAM.
    end: fraction of the run at which SAM ends.
    total_steps: length of the run in steps.
  """
  validation.check_number('start', start, at_least=0, below=1)
  validation.check_number('end', end, above=start, at_most=1)
  first, last = (round(part * total_steps) for part in (start, end))
  first = min(first, total_steps - 1)
  return optax_sam.late_sam(rho, start=first, end=max(last, first + 1))


def _swa(
  *, start: float = 0.75, total_steps: int, refresh_every: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the weights of the last epochs of a run, once an epoch.

  Args:
    start: fraction of the run before averaging starts. The authors average over
      about the last half of a run, at a high learning rate.
    total_steps: length of the run in steps.
    refresh_every: number of steps in an epoch.
  """
  validation.check_number('start', start, at_least=0, at_most=1)
  first = max(1, round(start * total_steps))
  return optax_sam.swa(first, every=refresh_every)


def _swad(  # noqa: D417 (the others: see `optax_sam.swad`)
  *,
  n_converge: int = 3,
  n_tolerance: int = 6,
  tolerance: float = 0.3,
  validation_share: float = 0.1,
  epochs_per_validation: int = 1,
) -> ValidatedAveraging:
  """Averages the weights of all steps, from start to end by validation loss.

  Args:
    validation_share: fraction of the training examples that is held out, above
      0 and at most 0.5. The seed of the run chooses them, in each class. Other
      methods of a comparison train on them too.
    epochs_per_validation: number of epochs between validations, at least 1; an
      epoch excludes the held-out examples.
  """
  share, epochs = validation_share, epochs_per_validation
  validation.check_number('validation_share', share, above=0, at_most=0.5)
  validation.check_static_integer('epochs_per_validation', epochs)
  functions = optax_sam.swad(
    n_converge=n_converge, n_tolerance=n_tolerance, tolerance=tolerance
  )
  return ValidatedAveraging(functions, share, epochs)


def _flat_noise(*, sigma: float = 0.05) -> Callable[..., Any]:
  """Returns Flat-LoRA's noise, without the number of steps."""
  optax_sam.lora.flat_noise((), 0, 0, total_steps=None, sigma=sigma)  # checks
  return functools.partial(optax_sam.lora.flat_noise, sigma=sigma)


def _bi_lora(
  base: optax.GradientTransformation, *, rho: float = 0.05
) -> optax.GradientTransformation:
  """Returns Bi-LoRA for the parameters of `models.adapters`."""
  labels = {'lora': 'lora', 'second': 'ascent'}
  return optax_sam.lora.bi_lora(base, labels, rho=rho)


@dataclasses.dataclass(frozen=True)
class Method:
  """The trainer's description of a method."""

  row: catalog.Method
  factory: Callable[..., Any]  # builds it, or its `ValidatedAveraging`
  uses_gradient: bool = True  # the unperturbed one of the batch
  # Batch norm must then use its running statistics.
  takes_per_example_losses: bool = False
  # Settings that `factory` computes with, beside those of the row.
  static: tuple[str, ...] = ()
  base_steps: str | None = None  # setting: base optimizer steps in a step
  is_own: bool = False  # not of the catalog
  has_second_pair: bool = False  # whether it trains two pairs of adapters

  @property
  def skips(self) -> bool:
    """Whether it skips the ascent step in some steps."""
    return self.row.group == 'some steps'

  @property
  def needs_adapters(self) -> bool:
    """Whether it trains low-rank adapters only."""
    return self.row.group == 'low-rank adapters'

  @property
  def reports(self) -> bool:
    """Whether `optax_sam.metrics` finds metrics in its state."""
    return bool(self.row.needs)


# The other methods of their groups, and those that need examples, don't use it.
_USE_GRADIENT = frozenset({'esam', 'sparse_sam_fisher'})
# Attributes of `Method` that differ from their defaults.
_SPECIAL: dict[str, dict[str, Any]] = {
  'bi_lora': {
    'row': dataclasses.replace(catalog.METHODS['bi_lora'], place='wraps'),
    'factory': _bi_lora,
    'has_second_pair': True,
  },
  'flat_noise': {
    'row': dataclasses.replace(catalog.METHODS['flat_noise'], place='loss'),
    'factory': _flat_noise,
  },
  'lookbehind': {'base_steps': 'steps'},
  'sparse_sam_fisher': {'takes_per_example_losses': True},
  # It uses a part of the gradient; a metric of all of it would cost the rest.
  'sparse_sam_layers': {'uses_gradient': False},
  'late_sam': {'factory': _late_sam, 'static': ('start', 'end')},
  'swa': {'factory': _swa, 'static': ('start',)},
  'swad': {'factory': _swad},
}


def _method(row: catalog.Method) -> Method:
  needs_none = row.group == 'one gradient' or row.needs == 'examples'
  given: dict[str, Any] = {
    'row': row,
    'factory': row.function,
    'uses_gradient': row.name in _USE_GRADIENT or not needs_none,
  }
  return Method(**given | _SPECIAL.get(row.name, {}))


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


# States with another solution than the trained parameters, and what reads it.
_SOLUTIONS: dict[type, Callable[[optax.Params, Any], optax.Params]] = {
  SwaState: optax_sam.averaged_params,
  AntiPgdState: optax_sam.without_noise,
  EntropySgdState: optax_sam.outer_params,
}


def solution(
  opt_state: Any,
) -> Callable[[optax.Params, Any], optax.Params] | None:
  """Returns what reads the solution of a run; None: the trained parameters."""
  found = (f for kind, f in _SOLUTIONS.items() if info.states(opt_state, kind))
  return next(found, None)


def own(name: str, given: Any, opt_state: Any) -> Method:
  """Returns a method that is not in the catalog.

  Args:
    name: its title.
    given: a gradient transformation, or a function from the base optimizer.
    opt_state: a state of it.
  """
  reports = bool(info.states(opt_state, info.SharpnessAwareState))
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
  return Method(
    row,
    factory,
    # A method may not use it; a metric of it would then cost a gradient.
    uses_gradient=not reports,
    is_own=True,
  )


@contextlib.contextmanager
def added(
  methods: Mapping[str, Method], bases: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
  """Adds methods and base optimizers, which may replace others, for a while."""
  registries: Any = ((METHODS, methods), (BASES, bases))
  former = [registered.copy() for registered, _ in registries]
  for registered, more in registries:
    registered.update(more)
  try:
    yield
  finally:
    for (registered, _), before in zip(registries, former, strict=True):
      registered.clear()
      registered.update(before)
