"""Rendering of self-contained HTML pages."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import msgspec

from optax_sam.train.reports.display import Style
from optax_sam.train.reports.formats import in_words, printable
from optax_sam.train.reports.results import Comparison
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
  comparison: Comparison,
  *,
  downloads: Mapping[str, str] | None = None,
  **values: Any,
) -> str:
  """Renders a page of HTML, which loads nothing.

  Args:
    styles: Style of each method or run.
    tables: The tables; the first one is above the figures.
    sections: Figures by heading; those without figures are left out.
    comparison: The results, for command, versions, machine and start.
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
    'base': comparison.base,
    'styles': {name: vars(style) for name, style in styles.items()},
    'figures': {
      figure['name']: figure for found in sections.values() for figure in found
    },
    'downloads': downloads or {},
  }
  return environment.get_template('page.html').render(
    read=lambda path: markupsafe.Markup(_read(path)),
    policy=_POLICY,
    data=markupsafe.Markup(as_script(data)),
    in_words=in_words,
    styles=styles,
    tables=tables,
    sections=sections,
    comparison=comparison,
    base=comparison.base,
    downloads=downloads,
    **values,
  )


def as_script(data: object) -> str:
  """Returns data as JSON in which no text ends the script; NaN is null."""
  as_list = lambda array: array.tolist()
  text = msgspec.json.encode(data, enc_hook=as_list).decode()
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _read(name: str) -> str:
  files = resources.files('optax_sam.train.reports')
  return files.joinpath(name).read_text('utf-8')
