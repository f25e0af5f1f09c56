"""The rows of the table of speed: baselines, and all methods of the catalog."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optax_sam
from benchmarks import steps, term_steps
from benchmarks.problems import Problem
from optax_sam import catalog

BASELINES = 'baselines'

# No mask is refreshed while the steps are timed; `benchmarks.scaling` measures
# what a refresh costs.
_NEVER = 1_000_000
_EDGE = 1e9  # a threshold that is always or never reached


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    name: its name in the table.
    group: the heading above it.
    build: from a problem and the number of steps to the way to take them.
    gradients: gradients that a step should cost, in full ones; None where
      that depends on the number of second gradients taken.
    counterpart: the row of another framework to compare its overhead with.
    share: fraction of second gradients that the row's name promises.
  """

  name: str
  group: str
  build: Callable[[Problem, int], steps.Steps]
  gradients: float | None = None
  counterpart: str | None = None
  share: float | None = None


@dataclasses.dataclass(frozen=True)
class _Variant:
  """A method at settings other than those of its first row.

  Attributes:
    label: appended to the name of the method.
    settings: arguments.
    gradients: as of `Row`; None if the catalog says it.
    share: as of `Row`.
    reports_loss: whether the step returns the unperturbed loss.
  """

  label: str = ''
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  gradients: float | None = None
  share: float | None = None
  reports_loss: bool = True


# Arguments other than the example of the catalog, at all rows of a method.
_SETTINGS: dict[str, dict[str, Any]] = {
  'b_sam': {'num_data': 50_000},
  'eigen_sam': {'refresh_every': _NEVER},
  'm_sam': {'micro_batch_size': 12},
  'sparse_sam_dynamic': {'refresh_every': _NEVER},
  'sparse_sam_fisher': {'num_samples': 8, 'refresh_every': _NEVER},
  'swa': {'start': 1, 'every': 1},
  'wsam_decoupled': {'learning_rate': 0.01},
}
_WITHOUT_LOSS = _Variant('no loss asked for', reports_loss=False)
_VARIANTS: dict[str, tuple[_Variant, ...]] = {
  'ae_sam': (
    _Variant(),
    _Variant('skipped', dict.fromkeys(('lambda_1', 'lambda_2'), _EDGE), 1, 0),
    _Variant('full', dict.fromkeys(('lambda_1', 'lambda_2'), -_EDGE), 2, 1),
  ),
  'k_sam': (_Variant('a third each'),),
  'look_sam': (
    _Variant(),
    # The first step is full, and it is not timed.
    _Variant('skipped', {'period': _NEVER}, 1),
    _Variant('full', {'period': 1}, 2, 1),
  ),
  'momentum_sam': (_WITHOUT_LOSS, _Variant()),
  'ss_sam': (
    _Variant(),
    # XLA would drop the second pass at a probability of 0.
    _Variant('skipped', {'probability': 1e-12}, 1, 0),
    _Variant('full', {'probability': 1.0}, 2, 1),
  ),
  'subset_sam': (_WITHOUT_LOSS, _Variant()),
}
_COUNTERPARTS = {
  'friendly_sam': 'FriendlySAM',
  'gsam': 'GSAM',
  'look_sam': 'LookSAM',
  'sam': 'SAM',
}


def _sgd(problem: Problem, total_steps: int) -> steps.Steps:
  del total_steps
  return steps.jitted_step(problem, steps.base_optimizer())


def _swad(problem: Problem, total_steps: int) -> steps.Steps:
  """Without validations, which are no part of a step."""
  del total_steps
  averaging = optax_sam.swad()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    after = optax.apply_updates(params, updates)
    return updates, averaging.accumulate(state, after)

  behind = optax.GradientTransformation(averaging.init, update)
  both = optax.chain(steps.base_optimizer(), behind)
  return steps.jitted_step(problem, both)


# How to take steps with methods that are no transformation.
_BUILDERS: dict[str, Callable[[Problem, int], steps.Steps]] = {
  'mesa_loss': lambda problem, _: term_steps.with_mesa(problem),
  'saf_loss': lambda problem, _: term_steps.with_saf(problem),
  'swad': _swad,
}


def count_gradients(
  method: catalog.Method, settings: Mapping[str, Any], *, reports_loss: bool
) -> float | None:
  """Evaluates the gradients per step that the catalog states.

  Args:
    method: of the catalog.
    settings: arguments other than the defaults.
    reports_loss: whether the unperturbed loss is used.

  Returns:
    The number; None if it depends on the steps that are taken.
  """
  text = method.gradients.replace('`', '')
  formula = text.partition(' (')[0].partition(',')[0]
  if formula.endswith('+ s'):
    return None
  parameters = inspect.signature(method.function).parameters
  values = {name: value.default for name, value in parameters.items()}
  found = eval(formula, {'__builtins__': {}}, {**values, **settings})
  return found + ('(+ 1/3)' in text and reports_loss) / 3


def _row(method: catalog.Method, variant: _Variant) -> Row:
  settings = {
    **method.example,
    **_SETTINGS.get(method.name, {}),
    **variant.settings,
  }

  def build(problem: Problem, total_steps: int) -> steps.Steps:
    given = dict(settings)
    if 'total_steps' in given:
      given['total_steps'] = total_steps
    if 'batch_like' in given:
      given['batch_like'] = problem.batches[0]
    base = steps.base_optimizer()
    if method.place == 'wraps':
      given['base'] = base
    with warnings.catch_warnings():
      # That no step ascends is what a row measures.
      warnings.filterwarnings('ignore', 'lambda_', UserWarning)
      tx = method.function(**given)
    if method.place == 'chain':
      tx = optax.chain(tx, base)
    if method.place == 'after':
      tx = optax.chain(base, tx)
    return steps.jitted_step(problem, tx, reports_loss=variant.reports_loss)

  gradients = variant.gradients
  if gradients is None:
    gradients = count_gradients(
      method, settings, reports_loss=variant.reports_loss
    )
  return Row(
    name=', '.join(filter(None, (method.name, variant.label))),
    group=method.group,
    build=_BUILDERS.get(method.name, build),
    gradients=gradients,
    counterpart=None if variant.label else _COUNTERPARTS.get(method.name),
    share=variant.share,
  )


def rows() -> list[Row]:
  """Returns all rows, SGD first."""
  found = [
    Row('SGD', BASELINES, _sgd, 1.0),
    Row('SAM by hand', BASELINES, lambda p, _: steps.sam_by_hand(p), 2.0),
    Row(
      'optax.contrib.sam', BASELINES, lambda p, _: steps.sam_of_optax(p), 2.0
    ),
  ]
  for method in catalog.METHODS.values():
    variants = _VARIANTS.get(method.name, (_Variant(),))
    found += [_row(method, variant) for variant in variants]
  return found
