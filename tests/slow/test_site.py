"""The documentation as a site: it builds, and shows what it includes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


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
