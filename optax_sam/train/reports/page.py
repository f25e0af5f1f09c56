"""Rendering of self-contained HTML pages."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from optax_sam.train.reports.pictures import Picture
from optax_sam.train.reports.svg import Style, marker_svg


def render(
  template: str,
  groups: Sequence[tuple[str, Sequence[Picture]]],
  **values: Any,
) -> str:
  """Renders a template as a page of HTML.

  Args:
    template: File name of a template that extends page.html.
    groups: The plots under their headings; missing plots are left out.
    **values: Further variables of the template.

  Returns:
    The page. It loads no external files and supports light and dark mode.
  """
  import jinja2
  import markupsafe

  files = resources.files('optax_sam.train.reports')
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(
      lambda name: files.joinpath(name).read_text('utf-8')
    ),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(
    css=markupsafe.Markup(files.joinpath('page.css').read_text('utf-8')),
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
    **values,
  )


def marker(style: Style) -> Any:
  """Returns a method's marker, for tables."""
  import markupsafe

  return markupsafe.Markup(marker_svg(style))


def pairs(settings: Mapping[str, object]) -> dict[str, str]:
  """Formats each setting as text."""
  return {name: in_words(value) for name, value in settings.items()}


def in_one_line(settings: Mapping[str, object]) -> str:
  """Formats the settings of a method as one text."""
  named = [f'{name} = {value}' for name, value in pairs(settings).items()]
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
