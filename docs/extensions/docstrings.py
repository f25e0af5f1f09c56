"""Makes Markdown of what docstrings have in reStructuredText.

That is: links to papers, equations as indented blocks after `::`, and doctests.
Arguments that are explained together get an entry each.
"""

import re
from typing import Any

import griffe

_LINK = re.compile(r'`([^`<]+?)\s*<(https://[^>]+)>`_')
_BLOCK = re.compile(
  r'^( *)(.*?)::\n\n((?:(?:\1  +.*)?\n)*(?:\1  +.*))', re.MULTILINE
)
# Arguments that share an explanation.
_SHARED = re.compile(
  r'^( +)(\w+(?:, \w+)+): ((?:.*\n)(?:\1 +.*\n)*)', re.MULTILINE
)
_DOCTEST = re.compile(r'^( *)(>>> .*(?:\n\1.+)*)', re.MULTILINE)


class Markdown(griffe.Extension):
  """Rewrites the docstring of every object."""

  def on_instance(self, *, obj: Any, **_: Any) -> None:
    """Called by griffe once for every object."""
    if obj.docstring is not None:
      obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
  """Returns a docstring with fenced equations and links of Markdown."""
  text = _BLOCK.sub(_fenced, text)
  text = _SHARED.sub(_one_by_one, text)
  text = _DOCTEST.sub(r'\1```pycon\n\1\2\n\1```', text)
  return _LINK.sub(
    lambda link: f'[{" ".join(link[1].split())}]({link[2]})', text
  )


def _one_by_one(entry: re.Match[str]) -> str:
  indent, names, description = entry.groups()
  return ''.join(f'{indent}{x}: {description}' for x in names.split(', '))


def _fenced(block: re.Match[str]) -> str:
  indent, lead, equation = block.groups()
  lines = equation.rstrip().splitlines()
  depth = min(len(x) - len(x.lstrip()) for x in lines if x.strip())
  code = '\n'.join(indent + line[depth:] for line in lines)
  return f'{indent}{lead}:\n\n{indent}```text\n{code}\n{indent}```\n'
