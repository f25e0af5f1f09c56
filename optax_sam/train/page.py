"""The page of a comparison: one file of HTML that needs nothing else."""

import dataclasses
from importlib import resources

from optax_sam.train import formats, wording
from optax_sam.train.pictures import picture_groups
from optax_sam.train.results import Comparison, summarize
from optax_sam.train.svg import marker_svg, method_styles, page_style


def render_page(comparison: Comparison) -> str:
  """Renders the report of a comparison as a page of HTML.

  Args:
    comparison: What was measured.

  Returns:
    The page. It loads nothing from elsewhere and follows the light or dark
    colours that its reader prefers.
  """
  import jinja2
  import markupsafe

  files = resources.files('optax_sam.train')
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  rows = summarize(comparison)
  styles = method_styles(comparison.methods, comparison.base)
  with page_style():
    groups = picture_groups(comparison, rows, styles)
  return environment.from_string(
    files.joinpath('page.html').read_text('utf-8')
  ).render(
    css=markupsafe.Markup(files.joinpath('page.css').read_text('utf-8')),
    headline=wording.headline(comparison, rows),
    setup=wording.setup(comparison),
    findings=wording.findings(comparison, rows),
    warnings=wording.warnings(comparison, rows),
    base=comparison.base,
    started=comparison.started.replace('T', ' '),
    radius=formats.number(comparison.sharpness_radius),
    rows=[
      formats.cells(row)
      | {'marker': markupsafe.Markup(marker_svg(styles[row.method]))}
      for row in rows
    ],
    sections=[
      {
        'title': title,
        'figures': [
          dataclasses.asdict(picture) | {'svg': markupsafe.Markup(picture.svg)}
          for picture in pictures
          if picture.svg is not None
        ],
      }
      for title, pictures in groups
      if any(picture.svg is not None for picture in pictures)
    ],
    reading=wording.reading(comparison),
    command=comparison.command,
    facts=_facts(comparison),
  )


def _facts(
  comparison: Comparison,
) -> list[tuple[str, list[tuple[str, str]]]]:
  run = [
    ('started', comparison.started.replace('T', ' ')),
    ('duration', formats.duration(comparison.seconds)),
    ('seeds', ', '.join(map(str, comparison.seeds))),
    ('steps of a run', f'{comparison.total_steps:,}'),
    ('test examples', f'{comparison.test_examples:,}'),
    (
      'radius of the SAM sharpness',
      formats.number(comparison.sharpness_radius),
    ),
  ]
  methods = [
    (method, _settings(comparison.runs_of(method)[0].settings))
    for method in comparison.methods
  ]
  groups = [
    ('Run', run),
    ('Settings of all runs', list(_pairs(comparison.settings).items())),
    ('Settings of the methods', methods),
    ('Versions', list(comparison.versions.items())),
    ('Machine', list(comparison.machine.items())),
  ]
  return [(title, facts) for title, facts in groups if facts]


def _pairs(settings: dict[str, object]) -> dict[str, str]:
  return {name: _value(value) for name, value in settings.items()}


def _value(value: object) -> str:
  if value is None or value == [] or value == ():
    return 'none'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list | tuple):
    return ', '.join(map(_value, value))
  return str(value)


def _settings(settings: dict[str, object]) -> str:
  pairs = _pairs(settings).items()
  return ', '.join(f'{name} = {value}' for name, value in pairs) or 'none'
