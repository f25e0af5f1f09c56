"""Makes Markdown of what docstrings have in reStructuredText.

That is: links to papers, formulas (`.. math::` and `:math:`), notes and
warnings, indented blocks after `::`, doctests and public names. Arguments that
are explained together get an entry each.
"""

import pathlib
import re
import textwrap
from typing import Any

import griffe

from optax_sam.catalog import METHODS

_LINK = re.compile(r'`([^`<]+?)\s*<(https://[^>]+)>`_')
_INLINE = re.compile(r':math:`([^`]+)`')
_INDENTED = r'((?:(?:\1  +.*)?\n)*(?:\1  +.*))'
_DIRECTIVE = re.compile(
  rf'^( *)\.\. (math|note|warning)::(?: *(\S.*))?(?:\n{_INDENTED})?',
  re.MULTILINE,
)
_BLOCK = re.compile(rf'^( *)(.*?)::\n\n{_INDENTED}', re.MULTILINE)
# Arguments that share an explanation.
_SHARED = re.compile(
  r'^( +)(\w+(?:, \w+)+): ((?:.*\n)(?:\1 +.*\n)*)', re.MULTILINE
)
# The first line of a result, up to a colon that is no type's.
_RESULT = re.compile(
  r'^( *(?:Returns|Yields):\n +[^\n:]* [^\n:]*): ', re.MULTILINE
)
_NAME = re.compile(r'`(optax_sam(?:\.\w+)+)`(?!_)')
_DOCTEST = re.compile(r'^( *)(>>> .*(?:\n\1.+)*)', re.MULTILINE)

# Names with a place in the reference, or a page as a method.
_DOCS = pathlib.Path(__file__).parents[1]
_LISTED = re.compile(r'^::: (\S+)$', re.MULTILINE)
PUBLIC = {method.path for method in METHODS.values()}
for _page in _DOCS.rglob('*.md'):
  PUBLIC.update(_LISTED.findall(_page.read_text(encoding='utf-8')))


class Markdown(griffe.Extension):
  """Rewrites the docstring of every object."""

  def on_instance(self, *, obj: Any, **_: Any) -> None:
    """Called by griffe once for every object."""
    if obj.docstring is not None:
      obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
  """Returns a docstring with formulas, code and links of Markdown."""
  text = _DIRECTIVE.sub(_directive, text)
  text = _INLINE.sub(
    lambda formula: f'\\({" ".join(formula[1].split())}\\)', text
  )
  text = _BLOCK.sub(_fenced, text)
  text = _RESULT.sub(r'\1&#58; ', text)
  text = _SHARED.sub(_one_by_one, text)
  text = _NAME.sub(
    lambda name: f'[{name[0]}][{name[1]}]' if name[1] in PUBLIC else name[0],
    text,
  )
  text = _DOCTEST.sub(r'\1```pycon\n\1\2\n\1```', text)
  return _LINK.sub(
    lambda link: f'[{" ".join(link[1].split())}]({link[2]})', text
  )


def _one_by_one(entry: re.Match[str]) -> str:
  indent, names, description = entry.groups()
  return ''.join(f'{indent}{x}: {description}' for x in names.split(', '))


def _directive(found: re.Match[str]) -> str:
  indent, kind, first, rest = found.groups()
  parts = filter(None, (first, textwrap.dedent(rest or '').strip()))
  if kind == 'math':
    formula = textwrap.indent(_formula('\n\n'.join(parts)), indent)
    return f'\n{indent}$$\n{formula}\n{indent}$$\n'
  # A section of Google's style.
  contents = textwrap.indent('\n'.join(parts), f'{indent}  ')
  return f'{indent}{kind.title()}:\n{contents}'


def _formula(text: str) -> str:
  """Returns a formula in one line; paragraphs become rows, as in Sphinx."""
  rows = [' '.join(x.split()) for x in re.split(r'\n\s*\n', text)]
  formula = rows[0]
  if len(rows) > 1:
    formula = r' \\ '.join(x if '&' in x else f'& {x}' for x in rows)
  if r'\begin' not in formula and re.search(r'(?<!\\)&|\\\\', formula):
    formula = rf'\begin{{aligned}} {formula} \end{{aligned}}'
  return formula


def _fenced(block: re.Match[str]) -> str:
  indent, lead, code = block.groups()
  code = textwrap.indent(textwrap.dedent(code).strip('\n'), indent)
  return f'{indent}{lead}:\n\n{indent}```text\n{code}\n{indent}```\n'
