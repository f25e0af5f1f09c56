"""Programs of README and site: each runs alone, in an empty directory.

Each block of the README is a program. The blocks of a page are one program.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from optax_sam.catalog import METHODS
from tests import compiling

STRICT = False  # as for those who copy it
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
sys.path.append(str(DOCS / 'extensions'))
_FENCE = re.compile(r'^```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(path):
  """Returns the Python blocks of a page, each at its line number."""
  text = path.read_text()
  return [
    '\n' * text[: block.start()].count('\n') + '\n' + block[1]
    for block in _FENCE.finditer(text)
  ]


# One device and usual promotion; of the settings of the tests only those that
# make compilation cheap.
ENVIRONMENT = {
  name: value for name, value in os.environ.items() if name[:4] != 'JAX_'
} | {'XLA_FLAGS': compiling.FLAGS}
README = blocks(ROOT / 'README.md')
PAGES = {
  str(path.relative_to(DOCS).with_suffix('')): path
  for path in sorted(DOCS.rglob('*.md'))
  if blocks(path)
}


def assert_runs(program, tmp_path):
  """Runs a program in a new process, in an empty directory."""
  path, empty = tmp_path / 'program.py', tmp_path / 'empty'
  path.write_text(program)
  empty.mkdir()
  done = subprocess.run(
    [sys.executable, str(path)],
    cwd=empty,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'assert ' in program


@pytest.mark.parametrize('number', range(len(README)))
def test_block_of_the_readme_runs_alone(number, tmp_path):
  assert_runs(README[number], tmp_path)


def test_readme_is_short():
  lines = (ROOT / 'README.md').read_text().splitlines()
  assert 200 <= len(lines) <= 250
  assert len(README[0].strip().splitlines()) <= 25


@pytest.mark.parametrize('name', PAGES)
def test_program_of_a_page_runs_alone(name, tmp_path):
  # Lines that are empty: line numbers in a traceback are those of the page.
  lines = []
  for block in blocks(PAGES[name]):
    lines += block.split('\n')[len(lines) :]
  assert_runs('\n'.join(lines), tmp_path)


NUMBERS = {'Two': 2, 'Three': 3, 'Four': 4}


def test_changed_lines_are_counted():
  counted = 0
  for page in ('plain_jax', 'flax_linen', 'flax_nnx', 'equinox'):
    for section in re.split(
      r'\n##? ', '\n' + (DOCS / 'howto' / f'{page}.md').read_text()
    ):
      marked = len(re.findall(r'# (?:new|changed)\b', section))
      said = re.search(r'^(\w+) lines change', section, re.MULTILINE)
      assert (NUMBERS[said[1]] if said else 0) == marked, section
      counted += marked > 0
  assert counted == 5


@pytest.mark.parametrize('name', METHODS)
def test_program_of_a_method_trains(name):
  method_pages = pytest.importorskip('method_pages')
  program = method_pages.program(METHODS[name])
  if not METHODS[name].is_transformation:
    assert program == ''
    return
  names = {'__name__': name}
  exec(compile(program, name, 'exec'), names)
  batch = names['batch']
  start = jnp.mean(names['losses'](jnp.zeros(3), batch))
  assert jnp.mean(names['losses'](names['params'], batch)) < start / 2
