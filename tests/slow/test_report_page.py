"""The report in headless Chromium: figures, switches, table, downloads."""

import math
import pathlib
import re
import shutil

import pytest

from optax_sam.train.reports import tables
from optax_sam.train.reports.comparison_report import render_page
from optax_sam.train.reports.results import Trial
from tests.train.reports.comparisons import (
  BETTER,
  SGD,
  SIMILAR,
  WORSE,
  comparison,
  of_accuracies,
  run,
  timing,
)

sync_api = pytest.importorskip('playwright.sync_api')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='no Chromium'),
]

WIDTHS = (1400, 800, 390)
# Boxes of texts that leave their figure, by more than a pixel.
CLIPPED = """
() => [...document.querySelectorAll('.js-plot')].flatMap(plot => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('text')].filter(text => {
    const found = text.getBoundingClientRect();
    return found.width > 0 && (found.left < box.left - 1
      || found.right > box.right + 1 || found.top < box.top - 1
      || found.bottom > box.bottom + 1);
  }).map(text => plot.parentElement.dataset.figure + ': ' + text.textContent);
})
"""
# Pairs of end labels of a figure that are closer than a line.
CROWDED = """
() => [...document.querySelectorAll('.js-plot[data-ready]')].filter(plot => {
  const tops = [...plot.querySelectorAll('.annotation-text')]
    .map(text => text.getBoundingClientRect().top).sort((a, b) => a - b);
  return tops.some((top, i) => i && top - tops[i - 1] < 11);
}).map(plot => plot.parentElement.dataset.figure)
"""


def example():
  names = ('sam', 'asam', 'friendly_sam', 'ae_sam', 'ae_look_sam', 'look_sam')
  scores = (BETTER, SIMILAR, BETTER, SIMILAR, BETTER, WORSE)
  values = dict(zip(names, scores, strict=True))
  made = of_accuracies(sgd=SGD, **values)
  at = [0.2 * i - 1 for i in range(11)]
  planes = {
    name: [
      {'x': x, 'y': y, 'loss': 0.1 + x * x + y * y} for y in at for x in at
    ]
    for name in ('sgd', 'sam')
  }
  spectrum = [
    {'eigenvalue': float(x), 'density': math.exp(-abs(x))} for x in range(9)
  ]
  line = [{'position': x, 'loss': 0.1 + x * x} for x in at]
  return comparison(
    [
      run(x.method, x.seed, x.last('test_accuracy'), landscape=line)
      for x in made.runs
    ],
    timings=[timing(name, [1.0, 1.9, 2.1]) for name in made.methods],
    trials=[
      Trial('sam', {'rho': rho}, 0, 1.0, 0.9 - rho) for rho in (0.1, 0.2)
    ],
    planes=planes,
    spectra={'sgd': spectrum},
  )


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as driver:
    started = driver.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox']
    )
    yield started
    started.close()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'report.html'
  path.write_text(render_page(example()), encoding='utf-8')
  return path


def opened(browser, path: pathlib.Path, **options):
  """Opens a page; what it requests and reports is in `page.faults`."""
  page = browser.new_page(**options)
  page.faults = []
  page.on(
    'request',
    lambda request: (
      page.faults.append(request.url)
      if request.url != path.as_uri() and not request.url.startswith('data:')
      else None
    ),
  )
  page.on('pageerror', lambda error: page.faults.append(str(error)))
  page.on('console', lambda message: page.faults.append(message.text))
  page.goto(path.as_uri())
  if options.get('java_script_enabled', True):
    page.wait_for_selector('html[data-drawn]')
  return page


@pytest.fixture
def page(browser, file):
  made = opened(browser, file, viewport={'width': 1400, 'height': 900})
  yield made
  allowed = re.compile(r'^blob:')
  assert [fault for fault in made.faults if not allowed.match(fault)] == []
  made.close()


def methods_in(page, figure):
  return page.evaluate(
    """name => [...new Set(document.querySelector(
      `[data-figure="${name}"] .js-plot`).data
      .map(trace => trace.legendgroup).filter(Boolean))]""",
    figure,
  )


def layout(page, figure, axis):
  return page.evaluate(
    """([name, axis]) => {
      const {title, type} = document.querySelector(
        `[data-figure="${name}"] .js-plot`).layout[axis];
      return {title: title.text, type};
    }""",
    [figure, axis],
  )


@pytest.mark.parametrize('mode', ['light', 'dark'])
@pytest.mark.parametrize('width', WIDTHS)
def test_the_page_fits_and_requests_nothing(browser, file, width, mode):
  size = {'width': width, 'height': 900}
  page = opened(browser, file, viewport=size, color_scheme=mode)
  assert page.faults == []
  assert page.evaluate('document.documentElement.scrollWidth') == width
  count = page.locator('[data-figure]').count()
  assert count == 12
  assert page.locator('.js-plot .main-svg').count() >= count
  assert page.evaluate(CLIPPED) == []
  assert page.evaluate(CROWDED) == []
  hints = page.locator('#results .hint').is_visible()
  scrolls = page.evaluate(
    "(() => { const t = document.querySelector('#results .scroll');"
    ' return t.scrollWidth > t.clientWidth })()'
  )
  assert hints == scrolls == (width < 1400)
  background = page.evaluate('getComputedStyle(document.body).backgroundColor')
  assert (background == 'rgb(20, 23, 26)') == (mode == 'dark')
  page.close()


def test_hovering_shows_a_value_and_the_range_of_the_method(page):
  plot = page.locator('[data-figure="test-metric"] .js-plot')
  plot.scroll_into_view_if_needed()
  # The last point of LookSAM, 86.1 %: its place by the axes of the figure.
  x, y = plot.evaluate(
    """plot => {
      const {xaxis, yaxis} = plot._fullLayout;
      const box = plot.getBoundingClientRect();
      return [box.left + xaxis._offset + xaxis.d2p(20) - 2,
              box.top + yaxis._offset + yaxis.d2p(86.1)];
    }"""
  )
  page.mouse.move(x - 40, y - 40)
  page.mouse.move(x, y)
  shown = page.locator('[data-figure="test-metric"] .hovertext')
  sync_api.expect(shown).to_contain_text('LookSAM: 86.1')
  lit = plot.evaluate(
    """plot => plot.data.filter(trace => trace.opacity === 1)
      .map(trace => [trace.legendgroup, trace.meta])"""
  )
  assert lit == [['look_sam', 'band'], ['look_sam', 'line']]


def test_a_click_hides_a_method_in_all_figures(page):
  button = page.locator('.methods [data-method="sam"]')
  figures = ('test-metric', 'tradeoff', 'differences', 'landscape')
  assert all('sam' in methods_in(page, figure) for figure in figures)
  button.click()
  assert button.get_attribute('aria-pressed') == 'false'
  for figure in figures:
    assert methods_in(page, figure)
    assert 'sam' not in methods_in(page, figure)
  button.press('Enter')
  assert all('sam' in methods_in(page, figure) for figure in figures)
  for one in page.locator('.methods button').all():
    one.click()
  assert not any(methods_in(page, figure) for figure in figures)


def test_axes_switch_in_all_curves(page):
  curves = ('test-metric', 'training-loss', 'gap')
  for choice, title in (('gradients', 'gradients, in'), ('seconds', 'seconds')):
    page.select_option('[data-option="x"]', choice)
    for figure in curves:
      assert layout(page, figure, 'xaxis')['title'].startswith(title)
    assert layout(page, 'tradeoff', 'xaxis')['title'].startswith(title)
  page.select_option('[data-option="scale"]', 'log')
  found = layout(page, 'test-metric', 'yaxis')
  assert found == {'title': 'test accuracy, %, log scale', 'type': 'log'}
  page.select_option('[data-option="scale"]', 'linear')
  assert layout(page, 'training-loss', 'yaxis')['type'] == 'linear'


def test_curves_show_differences_to_the_base(page):
  page.select_option('[data-option="values"]', 'difference')
  ends = page.evaluate(
    """() => Object.fromEntries(document.querySelector(
      '[data-figure="test-metric"] .js-plot').data
      .filter(trace => trace.meta === 'line')
      .map(trace => [trace.legendgroup, trace.y.at(-1)]))"""
  )
  # Means of BETTER and SIMILAR less that of SGD, in points.
  assert ends['sgd'] == 0
  assert ends['sam'] == pytest.approx(3.1, abs=1e-3)
  assert ends['asam'] == pytest.approx(0.1667, abs=1e-3)


def test_the_table_is_sorted_by_a_click(page):
  def order():
    rows = page.locator('#results tbody tr').all()
    return [row.get_attribute('data-row') for row in rows]

  before = order()
  assert before[0] == 'sgd'
  head = page.locator('#results th', has_text='test accuracy')
  head.locator('button').click()
  assert head.get_attribute('aria-sort') == 'ascending'
  ascending = [0.861, 0.91] + [0.9117] * 2 + [0.941] * 3
  in_order = [0.91, *[0.941, 0.9117] * 2, 0.941, 0.861]
  score = dict(zip(before, in_order, strict=True))
  assert [score[name] for name in order()] == ascending
  head.locator('button').click()
  assert head.get_attribute('aria-sort') == 'descending'
  assert order()[-1] == 'look_sam'


def test_downloads_come_from_the_page(page, tmp_path):
  def saved(selector):
    with page.expect_download() as waiting:
      page.locator(selector).click()
    target = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(target)
    return target

  path = saved('[data-download="results.csv"]')
  assert path.name == 'results.csv'
  assert path.read_text() == tables.results_csv(example())
  assert r'\toprule' in saved('[data-download="results.tex"]').read_text()
  assert saved('[data-download="results.md"]').read_text().startswith('| M')
  png = saved('[data-save="test-metric"][data-format="png"]')
  assert png.read_bytes().startswith(b'\x89PNG\r\n')
  svg = saved('[data-save="test-metric"][data-format="svg"]').read_text()
  assert svg.startswith('<svg')
  assert 'test accuracy, %' in svg


def test_the_button_switches_light_and_dark(page):
  colors = []
  for _ in range(2):
    page.locator('.theme').click()
    colors.append(
      page.evaluate(
        """[getComputedStyle(document.body).backgroundColor,
          document.querySelector('[data-figure="test-metric"] .js-plot')
          .data.at(-1).line.color]"""
      )
    )
  assert colors[0][0] == 'rgb(20, 23, 26)'
  assert colors[0][0] != colors[1][0]
  assert colors[0][1] != colors[1][1]


def test_links_open_folded_sections(page):
  assert not page.locator('#seeds .scroll').is_visible()
  page.locator('.contents a', has_text='By seed').click()
  page.wait_for_selector('#seeds[open] .scroll')


def test_print_shows_everything_within_the_paper(browser, file, tmp_path):
  page = opened(browser, file, viewport={'width': 1400, 'height': 900})
  page.pdf(path=tmp_path / 'report.pdf')
  assert (tmp_path / 'report.pdf').read_bytes().startswith(b'%PDF')
  page.set_viewport_size({'width': 700, 'height': 900})
  page.emulate_media(media='print')
  page.evaluate("dispatchEvent(new Event('beforeprint'))")
  assert not page.locator('.controls').is_visible()
  assert page.locator('details:not([open])').count() == 0
  assert page.evaluate(
    """[...document.querySelectorAll('.js-plot .main-svg')].every(svg =>
      svg.getBoundingClientRect().right <= 701)"""
  )
  page.evaluate("dispatchEvent(new Event('afterprint'))")
  assert page.locator('details:not([open])').count() == 1
  assert page.faults == []
  page.close()


def test_without_javascript_there_are_headline_table_and_texts(browser, file):
  page = opened(browser, file, java_script_enabled=False)
  assert 'better test accuracy than SGD' in page.locator('h1').inner_text()
  assert page.locator('#results tbody tr').count() == 7
  words = page.locator('[data-figure="differences"] .alternative')
  assert words.is_visible()
  assert not page.locator('.controls').is_visible()
  page.close()


def test_the_page_of_one_run_works(browser, tmp_path):
  path = tmp_path / 'report.html'
  comparison([run('sam', 0, 0.9)], base='sam').report(path)
  page = opened(browser, path, viewport={'width': 390, 'height': 800})
  assert page.faults == []
  assert methods_in(page, 'test-loss') == ['sam']
  assert page.evaluate(CLIPPED) == []
  page.close()
