"""README and guide: the Python code of a page is one program, and runs."""

import pathlib
import re

import jax.numpy as jnp
import matplotlib as mpl
import pytest

import optax_sam

STRICT = False  # as for those who copy it
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
_FENCE = re.compile(r'^```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def run(path, silent):
  """Runs all Python blocks of a page, one after the other, and counts them.

  Args:
    path: of the page.
    silent: number of blocks that assert nothing.

  Returns:
    (names that the program leaves, number of blocks).
  """
  text = path.read_text()
  blocks = list(_FENCE.finditer(text))
  assert sum('assert ' not in block[1] for block in blocks) == silent
  names = {'__name__': path.stem}
  for block in blocks:
    # Line numbers in a traceback are those of the page.
    line = text[: block.start()].count('\n') + 1
    exec(compile('\n' * line + block[1], str(path), 'exec'), names)
  return names, len(blocks)


def test_the_readme():
  names, blocks = run(ROOT / 'README.md', silent=1)
  assert blocks >= 7
  solution = jnp.array([1.0, -2.0, 0.5])
  assert jnp.allclose(names['params'], solution, atol=0.05)
  assert int(names['state'].step) == 50
  assert int(names['optimizer'].step[...]) == 50
  assert int(names['model'].dropout.rngs.count[...]) == 50


def test_the_guide_to_the_step():
  names, blocks = run(ROOT / 'docs' / 'step.md', silent=0)
  assert blocks == 3
  assert jnp.allclose(names['params'], jnp.array([1.0, -2.0, 0.5]), atol=0.05)


def test_the_guide_to_measures():
  mpl.use('agg')
  names, blocks = run(ROOT / 'docs' / 'measures.md', silent=1)
  assert blocks == 5
  assert set(names['solutions']) == {'SGD', 'SAM'}
  assert names['optax_sam'] is optax_sam


def test_the_guide_to_frameworks():
  path = ROOT / 'docs' / 'frameworks.md'
  _, blocks = run(path, silent=0)
  assert blocks == 6
  for section in path.read_text().split('\n## ')[1:]:
    marked = len(re.findall(r'# (?:new|changed)$', section, re.MULTILINE))
    if marked:
      counted = re.match(r'.*\n\n(\d) lines', section)
      assert counted, section
      assert int(counted[1]) == marked


@pytest.mark.parametrize('page', ['step', 'conventions'])
def test_the_pages_of_a_step(page):
  _, blocks = run(ROOT / 'docs' / f'{page}.md', silent=0)
  assert blocks >= 2
