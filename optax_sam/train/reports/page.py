"""Rendering of self-contained HTML pages."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, plain

_PLOTLY = 'vendor/plotly-cartesian.min.js'
# The page may load nothing: neither scripts, styles and images from elsewhere
# nor answers to requests. Browsers enforce it.
_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
  ' img-src data: blob:'
)


def render(
  template: str,
  groups: Sequence[tuple[str, Sequence[Figure]]],
  styles: Mapping[str, Style],
  *,
  downloads: Mapping[str, str] | None = None,
  base: str = '',
  **values: Any,
) -> str:
  """Renders a template as a page of HTML.

  Args:
    template: File name of a template that extends page.html.
    groups: The figures under their headings; those without content are left
      out.
    styles: Style of each method or run.
    downloads: Texts by file name, for `values` that link to them.
    base: Name of the base optimizer, the reference of differences; empty if
      there is none.
    **values: Further variables of the template.

  Returns:
    The page. It loads nothing and supports light and dark mode.
  """
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(_read),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  shown = [
    (title, [figure for figure in figures if figure.content is not None])
    for title, figures in groups
  ]
  data = {
    'base': base,
    'styles': {
      name: {
        'label': style.text,
        'color': style.color,
        'dash': style.dash,
        'symbol': style.symbol,
      }
      for name, style in styles.items()
    },
    'figures': {
      figure.name: figure.content for _, figures in shown for figure in figures
    },
    'downloads': downloads or {},
  }
  return environment.get_template(template).render(
    css=markupsafe.Markup(_read('page.css')),
    script=markupsafe.Markup(_read('figures.js') + _read('page.js')),
    plotly=markupsafe.Markup(_read(_PLOTLY)),
    policy=_POLICY,
    data=markupsafe.Markup(as_script(data)),
    sections=[section for section in shown if section[1]],
    styles=styles,
    base=base,
    **values,
  )


def as_script(data: object) -> str:
  """Returns data as JSON for a script element.

  Args:
    data: Mappings, sequences, texts and numbers.

  Returns:
    JSON in which no text ends the script or starts a comment.
  """
  text = json.dumps(plain(data), allow_nan=False, separators=(',', ':'))
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def in_one_line(settings: Mapping[str, object]) -> str:
  """Formats the settings of a method as one text."""
  named = [f'{name} = {in_words(value)}' for name, value in settings.items()]
  return ', '.join(named) or 'none'


def in_words(value: object) -> str:
  """Formats a setting as text."""
  if value is None or value == [] or value == ():
    return 'none'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list | tuple):
    return ', '.join(map(in_words, value))
  return str(value)


def _read(name: str) -> str:
  files = resources.files('optax_sam.train.reports')
  return files.joinpath(name).read_text('utf-8')
