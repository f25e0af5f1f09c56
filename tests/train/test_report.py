import csv
import html.parser
import json
import math
import re
import subprocess
import sys

import pytest

from optax_sam.train.reports.comparison_page import render_page
from optax_sam.train.reports.comparison_report import write_report
from optax_sam.train.reports.results import summarize
from optax_sam.train.reports.wording import headline, warnings
from tests.train.comparisons import (
  ODD,
  SGD,
  SIMILAR,
  STEPS,
  comparison,
  diverged,
  run,
  timing,
  usual,
)

VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}
LOADING = {'src', 'srcset', 'data', 'poster', 'action'}


class Page(html.parser.HTMLParser):
  """Reads a page: its text, tags and attributes; fails on wrong nesting."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ''
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value or '') for name, value in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self.text += data

  def values(self, name):
    return [value for _, key, value in self.attributes if key == name]


def test_page_is_well_formed_and_has_all_parts():
  page = Page(render_page(usual()))
  for heading in (
    'Results',
    'Accuracy',
    'Learning curves',
    'Cost',
    'Sharpness at the end of training',
    'How to read this',
    'How this was run',
  ):
    assert heading in page.text
  for fact in ('optax-sam compare --seeds 3', '0.10.0', '1 min 15 s', 'digits'):
    assert fact in page.text
  assert page.tags.count('figure') == 8
  alternatives = [x for tag, name, x in page.attributes if name == 'aria-label']
  assert sum('sam' in text for text in alternatives) >= 5


def test_page_loads_nothing():
  text = render_page(usual())
  page = Page(text)
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(page.tags)
  assert not {name for _, name, _ in page.attributes} & LOADING
  links = page.values('href') + page.values('xlink:href')
  assert {x for x in links if not x.startswith('#')} == {
    'results.csv',
    'metrics.jsonl',
  }
  assert not re.search(r'https?:|@import|url\((?!#)', text)


def test_identifiers_are_unique_and_references_lead_somewhere():
  text = render_page(usual())
  page = Page(text)
  identifiers = page.values('id')
  assert len(identifiers) == len(set(identifiers))
  used = [x[1:] for x in page.values('xlink:href')]
  used += re.findall(r'url\(#([^)]*)\)', text)
  used += page.values('aria-labelledby')
  assert used
  assert set(used) <= set(identifiers)


def test_plots_follow_the_colours_of_the_page():
  text = render_page(usual())
  style = text[text.index('<style>') : text.index('</style>')]
  rest = text[text.index('</style>') :]
  # No colour but those of the style sheet, which has them for light and dark.
  assert re.findall(r'(?:fill|stroke): ?#', rest) == []
  used = set(re.findall(r'var\(--([\w-]+)\)', rest))
  assert {'ink', 'grid', 'hue-0', 'hue-1'} <= used
  for name in used:
    assert style.count(f'--{name}:') == 2


def test_everything_is_escaped():
  attack = '<script>alert("&\'$x$")</script>'
  runs = [run('sgd', seed, value) for seed, value in enumerate(SGD)]
  runs += [
    run(attack, seed, value, settings={attack: attack})
    for seed, value in enumerate(SIMILAR)
  ]
  made = comparison(
    runs,
    settings={'dataset': attack, attack: [attack]},
    command=attack,
    versions={attack: attack},
    machine={attack: attack},
    started=attack,
    timings=[timing(attack, [1.5, 1.6])],
  )
  page = Page(render_page(made))
  assert 'script' not in page.tags
  assert attack in page.text
  assert any(attack in value for value in page.values('aria-label'))


@pytest.mark.parametrize('name', ODD)
def test_odd_comparisons_have_a_page_and_files(name, tmp_path):
  write_report(ODD[name], tmp_path)
  page = Page((tmp_path / 'report.html').read_text('utf-8'))
  rows = summarize(ODD[name])
  assert headline(ODD[name], rows) in page.text
  for sentence in warnings(ODD[name], rows):
    assert sentence in page.text
  assert not re.search(r'\b(nan|inf|None)\b', page.text)


def around(height):
  """Rows of a parabola of the given height."""
  positions = [index / 20 - 1 for index in range(41)]
  return [{'position': x, 'loss': height * x * x + 0.25} for x in positions]


def with_landscapes(**rows):
  return comparison(
    [
      run(method, seed, value, landscape=rows.get(method, []))
      for method in ('sgd', 'sam', 'asam')
      for seed, value in ((4, 0.9), (7, 0.91))
      if seed == 4 or method == 'sgd'
    ],
    settings={'dataset': 'digits', 'sharpness_examples': 256},
  )


def test_the_landscape_is_shown_where_it_was_measured():
  lost = [point | {'loss': math.nan} for point in around(1.0)]
  text = render_page(
    with_landscapes(sgd=around(8.0), sam=around(4.0), asam=lost)
  )
  page = Page(text)
  assert 'the 256 examples that sharpness is measured on' in page.text
  assert 'with seed 4' in page.text
  assert 'One direction and one seed' in page.text
  (alternative,) = [x for x in page.values('aria-label') if 'Loss at' in x]
  assert alternative == (
    'Loss at \N{MINUS SIGN}1, \N{MINUS SIGN}0.5, 0, 0.5 and 1 along the'
    ' direction: sgd 8.25, 2.25, 0.25, 2.25, 8.25; sam 4.25, 1.25, 0.25, 1.25,'
    ' 4.25; asam not finite, not finite, not finite, not finite, not finite.'
  )
  plot = text[text.index('One direction and one seed') :]
  plot = plot[: plot.index('</figure>')]
  # A curve and an entry of the legend for each line that can be drawn.
  assert ('sgd' in plot, '>sam<' in plot, '>asam<' in plot) == (
    True,
    True,
    False,
  )
  for missing in (usual(), with_landscapes(sam=lost)):
    assert 'Landscape' not in Page(render_page(missing)).text


def test_only_the_first_seed_has_a_curve():
  rows = {4: around(8.0), 7: around(2.0)}
  made = comparison(
    [run('sgd', seed, 0.9, landscape=rows[seed]) for seed in (4, 7)]
  )
  (alternative,) = [
    x for x in Page(render_page(made)).values('aria-label') if 'Loss at' in x
  ]
  assert 'sgd 8.25' in alternative
  assert '2.25, 0.75' not in alternative


def test_csv_has_a_row_a_run_in_full_precision(tmp_path):
  third = run('sam', 1, 1 / 3, share=1 / 7, settings={'period': 5})
  made = comparison([run('sgd', 0, 0.1 + 0.2), run('sam', 0, 0.9), third])
  write_report(made, tmp_path)
  with (tmp_path / 'results.csv').open(newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert [(row['method'], int(row['seed'])) for row in rows] == [
    ('sgd', 0),
    ('sam', 0),
    ('sam', 1),
  ]
  for row, of_run in zip(rows, made.runs, strict=True):
    assert float(row['test_accuracy']) == of_run.test_accuracy
    share = float(row['second_gradient_share'])
    assert share == of_run.second_gradient_share
    assert float(row['sam_sharpness']) == of_run.sharpness['sam_sharpness']
    assert float(row['seconds']) == of_run.seconds
  assert [row['setting_rho'] for row in rows] == ['', '0.05', '']
  assert [row['setting_period'] for row in rows] == ['', '', '5']


def test_jsonl_has_every_row_and_is_strict_json(tmp_path):
  lost = [{'position': 0.5, 'loss': math.nan}]
  found = [{'step': 9, 'validation_loss': math.nan, 'first_segment': 0}]
  made = comparison(
    [
      run('sgd', 3, 0.9, landscape=lost, validations=found),
      diverged('sam', 3),
    ]
  )
  write_report(made, tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text('utf-8').splitlines()

  def refuse(constant):
    raise AssertionError(constant)

  rows = [json.loads(line, parse_constant=refuse) for line in lines]
  expected = [
    {'method': of_run.method, 'seed': 3, 'kind': kind, **row}
    for of_run in made.runs
    for kind, part in (
      ('log', of_run.log),
      ('validation', of_run.validations),
      ('evaluation', of_run.evaluations),
      ('landscape', of_run.landscape),
    )
    for row in part
  ]
  for row in expected:
    for name, value in row.items():
      if isinstance(value, float) and math.isnan(value):
        row[name] = None
  assert rows == expected
  assert any(row.get('loss', 0) is None for row in rows)


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'directory: .*absent.* create it'):
    write_report(usual(), tmp_path / 'absent')
  assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_and_nothing_else_is_left(tmp_path):
  (tmp_path / 'report.html').write_text('old', encoding='utf-8')
  write_report(usual(), tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'metrics.jsonl',
    'report.html',
    'results.csv',
  ]
  assert (tmp_path / 'report.html').read_text('utf-8') != 'old'


def test_an_interrupted_comparison_says_so_before_its_results():
  made = comparison(
    [run('sgd', 0, 0.9), run('sam', 0, 0.9, stop=STEPS // 2)],
    interrupted=True,
    settings={'methods': ['sgd', 'sam', 'gsam']},
  )
  text = Page(render_page(made)).text
  assert text.index('Interrupted') < text.index('Results')
  assert 'No run of gsam.' in text
  assert '1 run stopped early, not counted: sam.' in text
  assert 'Interrupted' not in Page(render_page(usual())).text


def test_matplotlib_is_imported_only_to_draw():
  code = (
    'import sys, optax_sam.train.reports.comparison_report;'
    'heavy = {"matplotlib", "jinja2", "scipy.stats"} & set(sys.modules);'
    'sys.exit(str(heavy) if heavy else 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


def test_a_method_that_changed_nothing_is_named():
  idle = 'sam did what sgd does: with these settings'
  term = lambda *values: [
    {'step': step, 'loss': 0.1, 'trajectory_loss': value}
    for step, value in enumerate(values, start=1)
  ]
  for other, is_idle in (
    (run('sam', 0, 0.9, loss=0.2), True),
    (run('sam', 0, 0.9, loss=0.3), False),
    (run('sam', 0, 0.91, loss=0.2), False),
    (run('sam', 1, 0.9, loss=0.2), False),
    (run('sam', 0, 0.9, log=[], evaluations=[]), False),
    (run('sam', 0, 0.9, log=term(0.0, 0.0)), True),
    (run('sam', 0, 0.9, log=term(0.0, 0.1)), False),
  ):
    found = comparison([run('sgd', 0, 0.9, loss=0.2), other])
    assert (idle in ' '.join(warnings(found, summarize(found)))) == is_idle
