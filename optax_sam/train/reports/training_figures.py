"""Figures over the course of training."""

from collections.abc import Mapping, Sequence

from optax_sam.train.reports import curves, formats
from optax_sam.train.reports.curves import Curve
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, spans_decades
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.score_figures import value_label

_SEEDS = 'Mean over seeds; the band of a highlighted method spans its seeds.'
# Numbers of the log, with the titles of their figures.
_LOGGED = {
  'learning_rate': 'Learning rate',
  'gradient_norm': 'Norm of the gradient',
  'update_norm': 'Norm of the update',
  'parameter_norm': 'Norm of the parameters',
}


def learning_curves(
  comparison: Comparison, styles: Mapping[str, Style]
) -> list[Figure]:
  """Returns losses and metrics on training and test examples.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    The figures; without content if nothing was measured.
  """
  metric = comparison.metric
  name, scale = formats.name_of(metric), formats.scale(metric)
  test, train = f'test_{metric.name}', f'train_{metric.name}'

  def evaluated(key: str) -> dict[str, Curve | None]:
    return {
      method: curves.evaluated(comparison, method, lambda row: row.get(key))
      for method in styles
    }

  gap = {
    method: curves.evaluated(
      comparison,
      method,
      lambda row: (
        row[train] - row[test]
        if row.get(train) is not None and row.get(test) is not None
        else None
      ),
    )
    for method in styles
  }
  logged = {
    method: curves.logged(comparison, method, 'loss') for method in styles
  }
  made = [
    _figure(
      'test-metric',
      f'Test {name}',
      'The range of the axis ignores the first quarter.',
      evaluated(test),
      value_label(comparison),
      scale=scale,
      skip=0.25,
    ),
    _figure('test-loss', 'Test loss', '', evaluated('test_loss'), 'test loss'),
    _figure(
      'training-loss',
      'Training loss',
      'At the unperturbed parameters, averaged over short spans of steps.',
      logged,
      'training loss',
    ),
    _figure(
      'train-metric',
      f'Training {name}',
      'In evaluation mode, on training examples.',
      evaluated(train),
      value_label(comparison, 'training'),
      scale=scale,
      skip=0.25,
    ),
    _figure(
      'gap',
      f'Gap: training minus test {name}',
      'Above 0: the network fits its training examples better than others.',
      gap,
      f'gap{formats.comma_unit(metric)}',
      scale=scale,
      include=(0,),
    ),
  ]
  # The metric may be the loss.
  return [made[0], *made[2:]] if metric.name == 'loss' else made


def course(comparison: Comparison, styles: Mapping[str, Style]) -> list[Figure]:
  """Returns learning rate, norms and the fraction of perturbed gradients.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    The figures; without content if nothing was logged.
  """
  fraction = {
    method: curves.perturbed_fraction(comparison, method) for method in styles
  }
  made = [
    _figure(
      'perturbed-gradients',
      'Steps with a perturbed gradient',
      'Fraction of the steps, by span of steps.',
      fraction,
      'steps, %',
      scale=100,
      include=(0, 100),
    )
  ]
  for key, title in _LOGGED.items():
    found = {
      method: curves.logged(comparison, method, key) for method in styles
    }
    if any(curve is not None and curve.high.any() for curve in found.values()):
      name = key.replace('_', '-')
      made.append(_figure(name, title, '', found, title.lower(), log=False))
  return made


def _figure(
  name: str,
  title: str,
  caption: str,
  found: Mapping[str, Curve | None],
  label: str,
  *,
  scale: float = 1.0,
  skip: float = 0.0,
  log: bool = True,
  include: Sequence[float] = (),
) -> Figure:
  """Returns a figure of curves.

  Args:
    name: Name of the figure.
    title: Title of the figure.
    caption: Further explanation.
    found: Curve by method.
    label: Title of the y axis.
    scale: Factor of the values.
    skip: Fraction of the curve that the range of the axis ignores.
    log: Whether the axis is logarithmic if the values span decades.
    include: Values that the axis shows in any case.
  """
  shown = {method: curve for method, curve in found.items() if curve}
  calm = [curve for curve in shown.values() if not curve.diverged]
  values = [
    float(value)
    for curve in calm
    for value in curve.mean[int(skip * len(curve.mean)) :]
  ]
  last = '; '.join(
    f'{method} {formats.number(scale * float(curve.mean[-1]))}'
    for method, curve in shown.items()
  )
  diverged = len(calm) < len(shown)
  several = any((curve.high > curve.low).any() for curve in shown.values())
  seeds = f' {_SEEDS}' if several else ''
  ends = ' A curve ends where its first run diverged.' if diverged else ''
  content = None
  if shown:
    content = {
      'curves': [
        {'method': method} | curve.as_json(scale)
        for method, curve in shown.items()
      ],
      'label': label,
      'log': log and spans_decades(values),
      'skip': skip,
      'include': include,
    }
  return Figure(
    name,
    title,
    f'{caption}{seeds}{ends}'.strip(),
    f'{title}, at the end of training: {last}.',
    content,
  )
