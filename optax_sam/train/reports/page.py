"""Rendering of self-contained HTML pages."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import msgspec

from optax_sam.train.reports import formats
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.tables import Table

# The page may load nothing: neither scripts, styles and images from elsewhere
# nor answers to requests. Browsers enforce it.
_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
  ' img-src data: blob:'
)


def render(
  comparison: Comparison,
  tables: Sequence[Table],
  sections: Mapping[str, Sequence[Mapping[str, Any]]],
  *,
  downloads: Mapping[str, str] | None = None,
  **values: Any,
) -> str:
  """Renders a page of HTML, which loads nothing.

  The first one of the tables is above the figures, which are given by heading.
  Downloads are texts by file name, `values` further variables of page.html.
  """
  import jinja2
  import markupsafe

  def finalize(value: Any) -> Any:
    return formats.printable(value) if type(value) is str else value

  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(_read),
    autoescape=True,
    finalize=finalize,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  sections = {title: found for title, found in sections.items() if found}
  styles = formats.styles(comparison.methods, comparison.base)
  figures = [figure for found in sections.values() for figure in found]
  data = {
    'base': comparison.base,
    'styles': styles,
    'figures': {figure['name']: figure for figure in figures},
    'downloads': downloads or {},
  }
  return environment.get_template('page.html').render(
    read=lambda path: markupsafe.Markup(_read(path)),
    policy=_POLICY,
    data=markupsafe.Markup(_as_script(data)),
    formats=formats,
    styles=styles,
    tables=tables,
    sections=sections,
    comparison=comparison,
    base=comparison.base,
    downloads=downloads,
    **values,
  )


def _as_script(data: object) -> str:
  """Returns data as JSON in which no text ends the script; NaN is null."""
  text = msgspec.json.encode(data).decode()
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _read(name: str) -> str:
  files = resources.files('optax_sam.train.reports')
  return files.joinpath(name).read_text('utf-8')
