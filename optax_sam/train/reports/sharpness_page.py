"""The HTML page on the sharpness of finished runs."""

import math
from collections.abc import Callable, Mapping

from optax_sam.train.reports import (
  display,
  formats,
  page,
  sharpness_wording,
  solution_figures,
)
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements

# Maps the numbers of a run to texts of a value and its standard error.
_Cell = Callable[[dict[str, float]], tuple[str, str]]


def render_page(measured: Measurements) -> str:
  """Renders the report on finished runs as a page of HTML.

  Args:
    measured: The measurements.

  Returns:
    The page; see `page.render`.
  """
  styles = display.styles(list(measured.numbers), base='')
  data = measured.settings[next(iter(measured.settings))].get('dataset', '')
  runs = formats.count(len(styles), 'run')
  return page.render(
    'sharpness.html',
    _figures(measured, styles),
    styles,
    title=f'optax-sam: sharpness of {runs} on {data}, {measured.started[:10]}',
    cards=[],
    headline=sharpness_wording.headline(measured),
    setup=sharpness_wording.setup(measured),
    findings=sharpness_wording.findings(measured),
    warnings=sharpness_wording.warnings(measured),
    started=formats.moment(measured.started),
    measures=_measures(measured),
    differing=[
      (name.replace('_', ' '), [page.in_words(value) for value in values])
      for name, values in measured.differing().items()
    ],
    reading=sharpness_wording.reading(measured),
    command=measured.command,
    facts=_facts(measured),
  )


def _figures(
  measured: Measurements, styles: dict[str, Style]
) -> list[tuple[str, list[Figure]]]:
  """Returns bars of the measures and the curves, under their headings."""
  several = f'sam_sharpness_{ASCENT_STEPS}_steps'
  sharpness = {
    'sam_sharpness': 'SAM, 1 step',
    several: f'SAM, {ASCENT_STEPS} steps',
    'adaptive_sharpness': 'adaptive',
  }
  eigenvalues = {
    f'eigenvalue_{number}': f'eigenvalue {number}'
    for number in range(1, measured.config.eigenvalues + 1)
  }

  def bars(name: str, title: str, caption: str, keys: dict[str, str]) -> Figure:
    values = {
      run: {label: numbers[key] for key, label in keys.items()}
      for run, numbers in measured.numbers.items()
    }
    return _bars(name, title, caption, values, styles)

  return [
    (
      'Measures in figures',
      [
        bars(
          'eigenvalues',
          'Top eigenvalues of the Hessian',
          'Curvature in the steepest directions. Lower is flatter.',
          eigenvalues,
        ),
        bars(
          'sharpness',
          'Sharpness',
          'Rise of the loss near the solution. Lower is flatter.',
          sharpness,
        ),
      ],
    ),
    (
      'Landscape',
      [
        solution_figures.lines(
          measured.lines,
          styles,
          examples=sharpness_wording.examples(measured),
          caveat=sharpness_wording.landscape_caveat(measured),
        )
      ],
    ),
  ]


def _bars(
  name: str,
  title: str,
  caption: str,
  values: Mapping[str, Mapping[str, float]],
  styles: Mapping[str, Style],
) -> Figure:
  """Returns groups of bars, one bar for each run.

  Args:
    name: Name of the figure.
    title: Title of the figure.
    caption: Explanation.
    values: By run, the value of each group.
    styles: Style by run.

  Returns:
    The figure; without content if there is no finite value.
  """
  traces = [
    {
      'type': 'bar',
      'legendgroup': run,
      'x': list(of_run),
      'y': list(of_run.values()),
      'marker': {'color': styles[run].color},
      'hovertemplate': f'{styles[run].text}, %{{x}}: %{{y:.4~g}}'
      '<extra></extra>',
    }
    for run, of_run in values.items()
  ]
  words = '; '.join(
    f'{run} ' + ', '.join(formats.number(value) for value in of_run.values())
    for run, of_run in values.items()
  )
  any_finite = any(
    any(map(math.isfinite, of_run.values())) for of_run in values.values()
  )
  return Figure(
    name,
    title,
    caption,
    f'{title}: {words}.',
    {
      'traces': traces,
      'layout': {
        'barmode': 'group',
        'bargap': 0.25,
        'xaxis': {'type': 'category'},
        'yaxis': {'rangemode': 'tozero'},
      },
    }
    if any_finite
    else None,
  )


def _measures(measured: Measurements) -> list[dict[str, object]]:
  """Returns the rows of the table: name, settings and values of a measure."""
  config = measured.config
  radius = f'radius {formats.number(config.rho)}'
  adaptive_radius = f'radius {formats.number(config.adaptive_rho)}'
  several = f'sam_sharpness_{ASCENT_STEPS}_steps'
  rows: list[tuple[str, str, _Cell]] = [
    ('test accuracy', '%', _test_accuracy),
    ('SAM sharpness', f'{radius}, 1 step', _number('sam_sharpness')),
    ('SAM sharpness', f'{radius}, {ASCENT_STEPS} steps', _number(several)),
    ('adaptive sharpness', adaptive_radius, _number('adaptive_sharpness')),
  ]
  rows += [
    (f'eigenvalue {number}', 'of the Hessian', _number(f'eigenvalue_{number}'))
    for number in range(1, config.eigenvalues + 1)
  ]
  trace = _number('trace', 'trace_standard_error')
  rows.append(('trace', 'of the Hessian', trace))
  return [
    {
      'name': name,
      'note': note,
      'cells': [cell(numbers) for numbers in measured.numbers.values()],
    }
    for name, note, cell in rows
  ]


def _number(key: str, error: str | None = None) -> _Cell:
  return lambda numbers: (
    formats.number(_finite(numbers[key])),
    formats.number(_finite(numbers[error])) if error else '',
  )


def _test_accuracy(numbers: dict[str, float]) -> tuple[str, str]:
  return formats.percent(_finite(numbers['test_accuracy'])), ''


def _facts(
  measured: Measurements,
) -> list[tuple[str, list[tuple[str, str]]]]:
  config = measured.config
  measurement = [
    ('started', formats.moment(measured.started)),
    ('duration', formats.duration(measured.seconds)),
    ('training examples', f'{config.examples:,}'),
    ('radius of the SAM sharpness', formats.number(config.rho)),
    ('radius of the adaptive sharpness', formats.number(config.adaptive_rho)),
    ('random vectors for the trace', str(config.probes)),
    ('seed of everything random', str(config.seed)),
  ]
  return [
    ('Measurement', measurement),
    (
      'Settings of all runs' if len(measured.settings) > 1 else 'Settings',
      [
        (name.replace('_', ' '), page.in_words(value))
        for name, value in measured.common().items()
      ],
    ),
    ('Versions', list(measured.versions.items())),
    ('Machine', list(measured.machine.items())),
  ]


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
