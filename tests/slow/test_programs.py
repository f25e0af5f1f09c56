"""Programs of the site: those of a page are one program, and each runs."""

import pathlib
import re
import sys

import jax.numpy as jnp
import pytest

from optax_sam.catalog import METHODS

STRICT = False  # as for those who copy it
pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
sys.path.append(str(DOCS / 'extensions'))
_FENCE = re.compile(r'^```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# `measures.md` draws: see test_pages.py.
PAGES = [
  path
  for path in sorted(DOCS.rglob('*.md'))
  if _FENCE.search(path.read_text()) and path.stem != 'measures'
]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.stem)
def test_program_of_a_page_runs(path):
  text = path.read_text()
  names = {'__name__': path.stem}
  for block in _FENCE.finditer(text):
    # Line numbers in a traceback are those of the page.
    line = text[: block.start()].count('\n') + 1
    exec(compile('\n' * line + block[1], str(path), 'exec'), names)
  assert 'assert ' in text


@pytest.mark.parametrize('name', METHODS)
def test_program_of_a_method_trains(name):
  method_pages = pytest.importorskip('method_pages')
  program = method_pages.program(METHODS[name])
  if METHODS[name].place in ('loss', 'outside'):
    assert program == ''
    return
  names = {'__name__': name}
  exec(compile(program, name, 'exec'), names)
  batch = names['batch']
  start = jnp.mean(names['losses'](jnp.zeros(3), batch))
  assert jnp.mean(names['losses'](names['params'], batch)) < start / 2
