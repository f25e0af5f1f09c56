"""Sentences of the sharpness report: findings, warnings, explanations."""

import math

from optax_sam.train.reports.formats import count, join, number
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements

_COMPARED = {
  'sam_sharpness': 'SAM sharpness in 1 step',
  f'sam_sharpness_{ASCENT_STEPS}_steps': (
    f'SAM sharpness in {ASCENT_STEPS} steps'
  ),
  'adaptive_sharpness': 'adaptive sharpness',
  'eigenvalue_1': 'top eigenvalue',
  'trace': 'trace',
}
_SHARPER = 'A larger number is sharper.'


def headline(measured: Measurements) -> str:
  """Returns the headline; it does not name the flattest run."""
  return f'Sharpness of {count(len(measured.numbers), "finished run")}'


def examples(measured: Measurements) -> str:
  """Describes the examples."""
  return f'the first {count(measured.config.examples, "training example")}'


def setup(measured: Measurements) -> str:
  """Describes the measurements in one sentence."""
  common = measured.common()
  model = f' with the model {common["model"]}' if 'model' in common else ''
  whose = 'each run' if len(measured.numbers) > 1 else 'the run'
  return (
    f'{join(list(measured.numbers))} on {common["dataset"]}{model}: the'
    f' parameters at the end of {whose}, measured on {examples(measured)} in'
    ' evaluation mode, without weight decay and label smoothing.'
  )


def findings(measured: Measurements) -> list[str]:
  """Names the flattest run by each measure, with a caution.

  Args:
    measured: The measurements.

  Returns:
    Sentences; empty if there is nothing to compare.
  """
  flattest: dict[str, list[str]] = {}
  for key, measure in _COMPARED.items():
    name = _flattest(measured, key)
    if name is not None:
      flattest.setdefault(name, []).append(measure)
  if not flattest:
    return []
  each = [f'{name} by {join(by)}' for name, by in flattest.items()]
  said = f'The flattest is {each[0]}.'
  if len(each) > 1:
    said = f'Measures differ in which run is the flattest: {"; ".join(each)}.'
  return [
    said,
    'Each run is one solution: other seeds may give another order.',
    (
      'Flatness alone does not make a model better. Read it together with the'
      ' test accuracy.'
    ),
  ]


def _flattest(measured: Measurements, key: str) -> str | None:
  """Returns the run with the lowest value, None if it is within the error."""
  values = {
    name: numbers[key]
    for name, numbers in measured.numbers.items()
    if math.isfinite(numbers[key])
  }
  if len(values) < 2:
    return None
  best, second = sorted(values, key=lambda name: values[name])[:2]
  error = 0.0
  if key == 'trace':  # the only one that is an estimate
    errors = [
      measured.numbers[name]['trace_standard_error'] for name in (best, second)
    ]
    error = math.hypot(*errors)
  return best if values[second] - values[best] > 2 * error else None


def warnings(measured: Measurements) -> list[str]:
  """Lists missing numbers."""
  each = []
  for name, numbers in measured.numbers.items():
    missing = [
      key.replace('_', ' ')
      for key, value in numbers.items()
      if not math.isfinite(value)
    ]
    if missing:
      each.append(f'{name} ({", ".join(missing)})')
  if not each:
    return []
  return [f'Missing, not finite or not converged: {"; ".join(each)}.']


def landscape_caveat(measured: Measurements) -> str:
  """Describes the limits of the landscape plot."""
  if 'model' in measured.differing():
    return (
      'But networks of different shapes have different directions: do not'
      ' compare their curves closely.'
    )
  return 'One direction: others may look different.'


def reading(measured: Measurements) -> list[tuple[str, str]]:
  """Explains the terms of the page."""
  config = measured.config
  return [
    (
      'SAM sharpness',
      (
        'How much the loss rises within a distance of'
        f' {number(config.rho)} from the weights. In 1 step: at that distance'
        f' along the gradient, as SAM does. In {ASCENT_STEPS} steps: the'
        ' largest rise along a path of gradient ascent, closer to'
        f' the worst case. {_SHARPER}'
      ),
    ),
    (
      'Adaptive sharpness',
      (
        'How much the loss rises at worst if each weight may change by'
        f' {number(100 * config.adaptive_rho)}% of its own size. If one layer'
        ' is scaled up and the next one down, so that the function stays the'
        f' same, this measure is unchanged, unlike the others. {_SHARPER}'
      ),
    ),
    (
      'Eigenvalues of the Hessian',
      (
        'How strongly the loss curves along the directions where it curves'
        f' most; the first is the top one. {_SHARPER}'
      ),
    ),
    (
      'Trace of the Hessian',
      (
        'The sum of the curvatures along all directions, estimated with'
        f' {count(config.probes, "random vector")}; ± is the standard error of'
        f' the estimate. {_SHARPER}'
      ),
    ),
    (
      'Landscape',
      (
        'A narrower curve is sharper. A random direction is rarely a steep'
        ' one: the curve shows how the loss changes in general, not at worst.'
      ),
    ),
    (
      'Flatness',
      (
        'A flatter minimum alone is not a better model: networks that are'
        ' equally accurate can differ much in sharpness. Judge by test'
        ' accuracy, over several seeds.'
      ),
    ),
  ]
