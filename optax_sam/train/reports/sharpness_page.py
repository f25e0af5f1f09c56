"""The HTML page on the sharpness of finished runs."""

import math
from collections.abc import Callable

from optax_sam.train.reports import formats, page, pictures, sharpness_wording
from optax_sam.train.reports.measurements import ASCENT_STEPS, Measurements
from optax_sam.train.reports.svg import method_styles, page_style

# Maps the numbers of a run to texts of a value and its standard error.
_Cell = Callable[[dict[str, float]], tuple[str, str]]


def render_page(measured: Measurements) -> str:
  """Renders the report on finished runs as a page of HTML.

  Args:
    measured: The measurements.

  Returns:
    The page; see `page.render`.
  """
  styles = method_styles(list(measured.numbers), base='')
  with page_style():
    picture = pictures.along_one_line(
      measured.lines,
      styles,
      examples=sharpness_wording.examples(measured),
      of_whom='each run',
      caveat=sharpness_wording.landscape_caveat(measured),
    )
  return page.render(
    'sharpness.html',
    [('Landscape', [picture])],
    headline=sharpness_wording.headline(measured),
    setup=sharpness_wording.setup(measured),
    findings=sharpness_wording.findings(measured),
    warnings=sharpness_wording.warnings(measured),
    started=measured.started.replace('T', ' '),
    runs=[
      {'name': name, 'marker': page.marker(style)}
      for name, style in styles.items()
    ],
    measures=_measures(measured),
    differing=[
      (name.replace('_', ' '), [page.in_words(value) for value in values])
      for name, values in measured.differing().items()
    ],
    reading=sharpness_wording.reading(measured),
    command=measured.command,
    facts=_facts(measured),
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
    ('started', measured.started.replace('T', ' ')),
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
