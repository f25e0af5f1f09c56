"""Rendering of self-contained HTML pages."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.formats import in_words, printable
from optax_sam.train.reports.tables import Table

# The page may load nothing: neither scripts, styles and images from elsewhere
# nor answers to requests. Browsers enforce it.
_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
  ' img-src data: blob:'
)


def render(
  styles: Mapping[str, Style],
  tables: Sequence[Table],
  sections: Mapping[str, Sequence[Mapping[str, Any]]],
  *,
  base: str = '',
  downloads: Mapping[str, str] | None = None,
  **values: Any,
) -> str:
  """Renders a page of HTML, which loads nothing.

  Args:
    styles: Style of each method or run.
    tables: The tables; the first one is above the figures.
    sections: Figures by heading; those without figures are left out.
    base: The reference of differences; empty if there is none.
    downloads: Texts by file name.
    **values: Further variables of page.html.
  """
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(_read),
    autoescape=True,
    finalize=lambda value: printable(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  sections = {title: found for title, found in sections.items() if found}
  data = {
    'base': base,
    'styles': {name: vars(style) for name, style in styles.items()},
    'figures': {
      figure['name']: figure for found in sections.values() for figure in found
    },
    'downloads': downloads or {},
  }
  files = {
    name: markupsafe.Markup(_read(path))
    for name, path in (
      ('css', 'page.css'),
      ('plotly', 'vendor/plotly-cartesian.min.js'),
      ('figures_script', 'figures.js'),
      ('page_script', 'page.js'),
    )
  }
  return environment.get_template('page.html').render(
    files,
    policy=_POLICY,
    data=markupsafe.Markup(as_script(data)),
    in_words=in_words,
    styles=styles,
    tables=tables,
    sections=sections,
    base=base,
    downloads=downloads,
    **values,
  )


def as_script(data: object) -> str:
  """Returns data as JSON in which no text ends the script or starts a comment.

  Args:
    data: Mappings, sequences, texts and numbers.
  """
  text = json.dumps(plain(data), allow_nan=False, separators=(',', ':'))
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def plain(value: Any) -> Any:
  """Returns a value as JSON has it: rounded, NaN and infinity are null."""
  if isinstance(value, Mapping):
    return {str(key): plain(entry) for key, entry in value.items()}
  if isinstance(value, np.ndarray | list | tuple):
    return [plain(entry) for entry in value]
  if isinstance(value, float | np.floating):
    value = float(value)
    short = float(f'{value:.5g}') if is_drawable(value) else None
    return int(short) if short is not None and short.is_integer() else short
  return value


def _read(name: str) -> str:
  files = resources.files('optax_sam.train.reports')
  return files.joinpath(name).read_text('utf-8')
