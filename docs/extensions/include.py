"""Puts files of the repository, and generated tables, into pages.

A line `{{ CHANGELOG.md }}` is replaced by the file, and `{{ tables # NAME }}`
by a table that is generated from the catalog or from the recorded runs.
"""

import pathlib
import re
from collections.abc import Callable, Mapping

from optax_sam.catalog import METHODS

_ROOT = pathlib.Path(__file__).parents[2]
_LINE = re.compile(r'^\{\{ (\S+?)(?: # (.+?))? \}\}$', re.MULTILINE)
_ROW = re.compile(r'^\| `(\w+)` \|', re.MULTILINE)
# Pages for files that included files link to.
_PAGES = {
  '../docs/howto/lora.md': '../howto/lora.md',
  '../docs/pods.md': '../pods.md',
  'docs/conventions.md': 'conventions.md',
  'results/speed.png': '../speed.png',
  'results/evidence/evidence.md': '../evidence.md',
}
# Files that are not on the site: data and code.
_LINK_TO_FILE = re.compile(
  r'\[([^\]]+)\]\((?:results|notebooks|optax_sam|tests|CHANGELOG|docs/methods|docs/extensions)[^)]*\)'
)


def included(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
  """Returns the text of a page with all files and tables in it."""

  def replacement(line: re.Match[str]) -> str:
    name, table = line.groups()
    if name == 'tables':
      return _ROW.sub(_with_link, tables[table]())
    found = (_ROOT / name).read_text(encoding='utf-8')
    for path, page in _PAGES.items():
      found = found.replace(f']({path})', f']({page})')
    return _LINK_TO_FILE.sub(r'`\1`', found)

  return _LINE.sub(replacement, text)


def _with_link(row: re.Match[str]) -> str:
  """Links from the first column to the page of the method."""
  if row[1] not in METHODS:
    return row[0]
  return f'| [`{row[1]}`][{METHODS[row[1]].path}] |'
