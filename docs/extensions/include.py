"""Puts files of the repository, or sections of them, into pages.

A line `{{ README.md }}` is replaced by the file, `{{ README.md # Methods }}` by
what stands under a heading of it, so that nothing is written twice.
"""

import math
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parents[2]
_LINE = re.compile(r'^\{\{ (\S+?)(?: # (.+?))? \}\}$', re.MULTILINE)
_ROW = re.compile(r'^\| `(\w+)` \|', re.MULTILINE)
_HEADING = re.compile(r'^(#+) (.+)$', re.MULTILINE)
# Pages for files that others link to.
_PAGES = {
  'benchmarks/README.md': 'speed.md',
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
  '../docs/pods.md': 'pods.md',
  'docs/pods.md': 'pods.md',
  'docs/conventions.md': 'conventions.md',
  'benchmarks/results/evidence/evidence.md': 'evidence.md',
  'results/evidence/evidence.md': 'evidence.md',
  'benchmarks/results/evidence/evidence.png': 'evidence.png',
}
# Files that are not on the site: data and code.
_LINK_TO_FILE = re.compile(
  r'\[([^\]]+)\]\((?:results|notebooks|optax_sam|tests)/[^)]*\)'
)


_PICTURE = 'benchmarks/results/evidence/evidence.png'


def on_files(files: Any, config: Any) -> Any:
  """Called by MkDocs with all files of the site."""
  files.append(
    File.generated(config, 'evidence.png', abs_src_path=str(_ROOT / _PICTURE))
  )
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Called by MkDocs with the text of every page."""
  text = _LINE.sub(_included, markdown)
  if page.file.src_uri == 'methods.md':
    text = _ROW.sub(r'| [`\1`][optax_sam.\1] |', text)
  return text


def _included(line: re.Match[str]) -> str:
  name, heading = line.groups()
  text = (_ROOT / name).read_text(encoding='utf-8')
  if heading is not None:
    text = _section(text, heading, name)
  for path, page in _PAGES.items():
    text = text.replace(f']({path})', f']({page})')
  return _LINK_TO_FILE.sub(r'`\1`', text)


def _section(text: str, wanted: str, name: str) -> str:
  headings = _headings(text)
  for number, (level, title, _, start) in enumerate(headings):
    if title != wanted:
      continue
    # Of a title only what stands above the first section.
    within = level if level > 1 else math.inf
    later = (h for h in headings[number + 1 :] if h[0] <= within)
    end = next(later, (0, '', len(text), 0))[2]
    return text[start:end].strip()
  msg = f'{name} has no heading {wanted!r}'
  raise ValueError(msg)


def _headings(text: str) -> list[tuple[int, str, int, int]]:
  """Returns level, title, start and end of headings outside of code."""
  blank = re.sub(
    r'^```.*?^```$',
    lambda code: ' ' * len(code[0]),
    text,
    flags=re.MULTILINE | re.DOTALL,
  )
  return [
    (len(found[1]), found[2], found.start(), found.end())
    for found in _HEADING.finditer(blank)
  ]
