"""The documentation: it builds, misses no public name, and its code runs."""

import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys

import matplotlib as mpl
import pytest

import optax_sam
from tests import test_readme

STRICT = False  # in its code, as in that of its readers

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
MODULES = (
  'optax_sam',
  'optax_sam.descents',
  'optax_sam.flax',
  'optax_sam.landscape',
  'optax_sam.perturbations',
  'optax_sam.policies',
  'optax_sam.selections',
  'optax_sam.sharpness',
)


def public_names():
  for path in MODULES:
    module = importlib.import_module(path)
    names = getattr(module, '__all__', None) or [
      name
      for name, value in vars(module).items()
      if not name.startswith('_')
      and getattr(value, '__module__', '').startswith(path)
    ]
    for name in names:
      if not inspect.ismodule(getattr(module, name)):
        yield f'{path}.{name}'


def test_every_public_name_is_in_the_reference():
  pages = [path.read_text() for path in (DOCS / 'api').glob('*.md')]
  listed = re.findall(r'^::: (\S+)$', '\n'.join(pages), re.MULTILINE)
  assert sorted(listed) == sorted(public_names())


def test_tables_of_methods_are_up_to_date():
  path = DOCS / 'tables.py'
  checked = subprocess.run(
    [sys.executable, str(path), '--check'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert checked.returncode == 0, checked.stderr


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  target = tmp_path_factory.mktemp('site')
  built = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--site-dir', str(target)],
    cwd=ROOT,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  # A warning, as of a link that leads nowhere, is an error: see mkdocs.yml.
  assert built.returncode == 0, built.stderr
  return target


def test_the_site_has_what_its_pages_include(site):
  page = (site / 'methods' / 'index.html').read_text()
  assert 'href="../api/methods/#optax_sam.look_sam"' in page
  assert 'optax_sam.norm_layers_only' in page
  assert '{{' not in page
  start = (site / 'index.html').read_text()
  assert 'One training step for all methods' in start
  assert 'Citation and licence' not in start


def test_the_reference_shows_rules_papers_and_examples(site):
  page = (site / 'api' / 'methods' / 'index.html').read_text()
  text = re.sub(r'<[^>]+>', '', page)
  assert re.search(r'epsilon = rho \* g / \(norm\(g\) \+ 1e-12\)', text)
  assert '<a href="https://arxiv.org/abs/2010.01412">' in page
  assert '<code>gt;' not in page
  for left in ('`_', '::\n'):
    assert left not in text


def test_the_code_of_measures_runs():
  mpl.use('agg')
  page = DOCS / 'measures.md'
  names = {'__name__': 'measures'}
  blocks = [
    block
    for block in test_readme.FENCE.finditer(page.read_text())
    if block[1] == 'python'
  ]
  assert len(blocks) == 5
  assert all('assert ' in block[2] for block in blocks[1:])
  for block in blocks:
    line = page.read_text()[: block.start()].count('\n') + 1
    exec(compile('\n' * line + block[2], str(page), 'exec'), names)
  assert set(names['solutions']) == {'SGD', 'SAM'}
  assert names['optax_sam'] is optax_sam
