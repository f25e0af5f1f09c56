"""The documentation as a site: it builds, offline, and shows each method."""

import html
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.evidence import analysis
from benchmarks.evidence.problems import PROBLEMS
from optax_sam.catalog import METHODS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
RUNS = analysis.load(ROOT / 'benchmarks' / 'results' / 'evidence')


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


def read(site, page):
  return (site / page / 'index.html').read_text()


def words(page):
  return html.unescape(re.sub(r'<[^>]+>', '', page))


def test_no_page_loads_anything_from_the_network(site):
  pages = list(site.rglob('*.html'))
  assert len(pages) > 60
  loaded = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="?([^" >]+)|<link[^>]*href="?([^" >]+)'
  )
  for page in pages:
    for found in loaded.finditer(page.read_text()):
      assert '//' not in (found[1] or found[2]), f'{page}: {found[0]}'
  for style in site.rglob('*.css'):
    assert not re.search(r'url\(["\']?(https?:)?//', style.read_text())
  fonts = set(
    re.findall(
      r'fonts/[\w-]+\.woff2', (site / 'assets/katex/katex.min.css').read_text()
    )
  )
  assert len(fonts) == 20
  assert all((site / 'assets' / 'katex' / font).exists() for font in fonts)


def test_formulas_are_marked_for_katex(site):
  page = read(site, 'learn/how_sam_works')
  assert page.count('<div class="arithmatex">\\[') == 2
  assert r'\epsilon &amp;= \rho' in page or r'\epsilon &= \rho' in page
  for script in ('assets/katex/katex.min.js', 'assets/formulas.js'):
    assert f'src="../../{script}"' in page
    assert (site / script).exists()


@pytest.mark.parametrize('name', METHODS)
def test_every_method_has_a_page(site, name):
  row = METHODS[name]
  page = read(site, f'methods/{name}')
  text = words(page)
  assert f'<a href="{row.paper.link}">' in page
  assert f'id="{row.path}"' in page
  assert f'eprint = {{{row.paper.arxiv}}}' in text
  for part in (row.use_when, row.gradients, row.state, row.unverified):
    assert part.replace('`', '').replace('**', '') in text.replace('**', '')
  # No reStructuredText or unprocessed Markdown is left.
  for left in ('`_', '::\n', '.. math', ':math:', '{{ ', '| |'):
    assert left not in text
  index = read(site, 'methods')
  assert re.search(rf'<a [^>]*href="{name}/#{row.path}"', index)


def test_a_page_of_a_method_shows_rule_arguments_evidence(site):
  page = read(site, 'methods/ae_sam')
  text = words(page)
  for problem, runs in RUNS.items():
    gain = analysis.difference(runs, analysis.gain('ae_sam'))
    if gain.mean is not None:
      assert PROBLEMS[problem].title in text
      assert f'{gain.mean:+.2f}'.replace('-', '\N{MINUS SIGN}') in text
  assert 'optax_sam.ae_sam(total_steps=1000)' in text
  assert 'Fidelity to the paper' in text
  assert 'https://docs.python.org/3/library/functions.html#float' in page
  assert 'api/optimizer_schedules.html' in page


def test_pages_include_files_and_tables(site):
  for page in site.rglob('*.html'):
    assert '{{ ' not in words(page.read_text()), page
  start = read(site, '.')
  assert f'{len(METHODS)}\nmethods' in start
  assert 'Which method helps on my problem' in start
  assert 'class="sam-picture"' in read(site, 'learn/how_sam_works')
  choice = words(read(site, 'learn/how_to_choose'))
  gain = analysis.mean_difference(RUNS, analysis.gain('friendly_sam'))
  assert f'{gain.mean:+.2f}'.replace('-', '\N{MINUS SIGN}') in choice


def test_notebooks_are_pages(site):
  for path in (ROOT / 'notebooks').glob('*.ipynb'):
    page = read(site, f'learn/notebooks/{path.stem}')
    assert '<span class="kn">import</span>' in page
    assert f'href="{path.stem}/"' in read(site, 'learn/notebooks')
