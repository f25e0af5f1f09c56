"""The rows of the speed table: baselines and all methods of the catalog."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optax_sam
from benchmarks import adapter_steps, steps, term_steps
from benchmarks.problems import Problem
from optax_sam import catalog

BASELINES = 'baselines'

# No mask is refreshed during timing.
_NEVER = 1_000_000
_EDGE = 1e9  # a threshold that is always or never reached


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    name: its name in the table.
    group: its heading in the table.
    build: maps a problem and a number of steps to `steps.Steps`.
    gradients: expected cost of a step in full gradients; None if it depends on
      the number of perturbed gradients.
    counterpart: the row of another framework for the comparison of overhead.
    fraction: fraction of perturbed gradients, for rows with a fixed fraction.
  """

  name: str
  group: str
  build: Callable[[Problem, int], steps.Steps]
  gradients: float | None = None
  counterpart: str | None = None
  fraction: float | None = None


@dataclasses.dataclass(frozen=True)
class _Variant:
  """A method with other settings than those of its first row.

  Attributes:
    label: appended to the name of the method.
    settings: arguments.
    gradients: see `Row`; None for that of the catalog.
    fraction: see `Row`.
    uses_clean_pass: whether the step returns the unperturbed loss and updates
      the statistics of batch norm.
  """

  label: str = ''
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  gradients: float | None = None
  fraction: float | None = None
  uses_clean_pass: bool = True


# Arguments that override those of the catalog, for all rows of a method.
_SETTINGS: dict[str, dict[str, Any]] = {
  'b_sam': {'num_data': 50_000},
  'eigen_sam': {'refresh_every': _NEVER},
  'm_sam': {'micro_batch_size': 12},
  'sparse_sam_dynamic': {'refresh_every': _NEVER},
  'sparse_sam_fisher': {'num_samples': 8, 'refresh_every': _NEVER},
  'swa': {'start': 1, 'every': 1},
  'wsam_decoupled': {'learning_rate': 0.01},
}
_WITHOUT_CLEAN_PASS = _Variant(
  'loss and statistics unused', uses_clean_pass=False
)
_VARIANTS: dict[str, tuple[_Variant, ...]] = {
  'ae_sam': (
    _Variant(),
    _Variant('skipped', dict.fromkeys(('lambda_1', 'lambda_2'), _EDGE), 1, 0),
    _Variant('full', dict.fromkeys(('lambda_1', 'lambda_2'), -_EDGE), 2, 1),
  ),
  'k_sam': (_Variant('a third each'),),
  'look_sam': (
    _Variant(),
    # The first step takes both gradients, and it is not timed.
    _Variant('skipped', {'period': _NEVER}, 1),
    _Variant('full', {'period': 1}, 2, 1),
  ),
  'momentum_sam': (_WITHOUT_CLEAN_PASS, _Variant()),
  'sparse_sam_layers': (
    _Variant(),
    # The last half of the network: 3/2 of a gradient, and 2/3 of a quarter.
    _Variant('quarter batch', {'fraction': 0.25}, 4 / 3),
    _Variant(
      'quarter batch, loss and statistics unused',
      {'fraction': 0.25},
      7 / 6,
      uses_clean_pass=False,
    ),
  ),
  'ss_sam': (
    _Variant(),
    # With a probability of 0 XLA would remove the second pass.
    _Variant('skipped', {'probability': 1e-12}, 1, 0),
    _Variant('full', {'probability': 1.0}, 2, 1),
  ),
  'subset_sam': (_WITHOUT_CLEAN_PASS, _Variant()),
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
  """SWAD without validations, which are not part of a step."""
  del total_steps
  averaging = optax_sam.swad()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    after = optax.apply_updates(params, updates)
    return updates, averaging.accumulate(state, after)

  after = optax.GradientTransformation(averaging.init, update)
  both = optax.chain(steps.base_optimizer(), after)
  return steps.jitted_step(problem, both)


# Steps of methods that are not transformations.
_BUILDERS: dict[str, Callable[[Problem, int], steps.Steps]] = {
  'bi_lora': adapter_steps.with_bi_lora,
  'flat_noise': adapter_steps.with_flat_noise,
  'mesa_loss': lambda problem, _: term_steps.with_mesa(problem),
  'saf_loss': lambda problem, _: term_steps.with_saf(problem),
  'swad': _swad,
}


def count_gradients(
  method: catalog.Method, settings: Mapping[str, Any], *, uses_clean_pass: bool
) -> float | None:
  """Evaluates the gradients per step that the catalog states.

  Args:
    method: row of the catalog.
    settings: arguments other than the defaults.
    uses_clean_pass: see `_Variant`.

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
  return found + ('(+ 1/3)' in text and uses_clean_pass) / 3


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
      # The row measures steps without ascent.
      warnings.filterwarnings('ignore', 'lambda_', UserWarning)
      tx = method.function(**given)
    if method.place == 'chain':
      tx = optax.chain(tx, base)
    if method.place == 'after':
      tx = optax.chain(base, tx)
    return steps.jitted_step(
      problem, tx, uses_clean_pass=variant.uses_clean_pass
    )

  gradients = variant.gradients
  if gradients is None:
    gradients = count_gradients(
      method, settings, uses_clean_pass=variant.uses_clean_pass
    )
  return Row(
    name=', '.join(filter(None, (method.name, variant.label))),
    group=method.group,
    build=_BUILDERS.get(method.name, build),
    gradients=gradients,
    counterpart=None if variant.label else _COUNTERPARTS.get(method.name),
    fraction=variant.fraction,
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
    if method.place == 'adapters' and found[-1].group != method.group:
      found.append(Row('SGD on adapters', method.group, adapter_steps.plain, 1))
    variants = _VARIANTS.get(method.name, (_Variant(),))
    found += [_row(method, variant) for variant in variants]
  return found
