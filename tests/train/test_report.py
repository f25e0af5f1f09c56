import csv
import html.parser
import io
import json
import math
import re
import subprocess
import sys

import pytest
import rich.console

from optax_sam.train.page import render_page
from optax_sam.train.report import print_table, write_report
from optax_sam.train.results import Timing, summarize
from optax_sam.train.wording import findings, headline, warnings
from tests.train.comparisons import (
  STEPS,
  comparison,
  diverged,
  of_accuracies,
  run,
  timing,
)

SGD = [0.900, 0.920, 0.910]
BETTER = [0.930, 0.951, 0.942]
WORSE = [0.850, 0.871, 0.862]
SIMILAR = [0.910, 0.910, 0.915]
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


def usual(**changes):
  made = of_accuracies(sgd=SGD, sam=BETTER, asam=SIMILAR)
  timings = [timing('sgd', [1.0, 1.0]), timing('sam', [1.9, 2.1])]
  return comparison(made.runs, **({'timings': timings} | changes))


def said(made):
  return headline(made, summarize(made))


def printed(made, width=100):
  stream = io.StringIO()
  print_table(made, rich.console.Console(file=stream, width=width))
  return stream.getvalue()


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


ODD = {
  'no runs': comparison([], interrupted=True),
  'base only': of_accuracies(sgd=SGD),
  'base missing': of_accuracies(sam=BETTER, asam=SIMILAR),
  'one seed': of_accuracies(sgd=[0.9], sam=[0.91]),
  'equal': of_accuracies(sgd=SGD, sam=SGD),
  'nothing measured': comparison(
    [
      run(method, 0, 0.9, sharpness={}, log=[], evaluations=[])
      for method in ('sgd', 'sam')
    ]
  ),
  'diverged': comparison(
    [
      run('sgd', 0, 0.9),
      run('sgd', 1, 0.92),
      run('sam', 0, 0.9),
      diverged('sam', 1),
    ],
    timings=[Timing('sam', [math.nan], [math.nan], None)],
  ),
  'all diverged': comparison([diverged('sgd', 0), diverged('sam', 0)]),
  'NaN from the first step': comparison(
    [
      run('sgd', 0, 0.9),
      run('sam', 0, 0.1, log=[{'step': 2, 'loss': math.nan}]),
    ]
  ),
  'infinite loss': comparison(
    [run('sgd', 0, 0.9, loss=math.inf), run('sam', 0, 0.9, loss=1e300)]
  ),
  'one log row': comparison(
    [
      run('sgd', 0, 0.9, log=[{'step': 20, 'loss': 0.0}]),
      run('sam', 0, 0.9, stop=2),
    ]
  ),
  'huge sharpness': comparison(
    [
      run('sgd', 0, 0.9),
      run('sam', 0, 0.9, sharpness={'top_eigenvalue': 1e305}),
    ]
  ),
  'negative sharpness': comparison(
    [run('sgd', 0, 0.9, sharpness={'sam_sharpness': -0.1})]
  ),
  'twelve methods, twenty seeds': of_accuracies(
    sgd=[0.9 + 0.001 * seed for seed in range(20)],
    **{
      f'a_method_with_a_long_name_{index}': [
        0.9 + 0.0011 * seed + 0.001 * index for seed in range(20)
      ]
      for index in range(11)
    },
  ),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_comparisons_have_a_page_files_and_a_table(name, tmp_path):
  write_report(ODD[name], tmp_path)
  page = Page((tmp_path / 'report.html').read_text('utf-8'))
  assert said(ODD[name]) in page.text
  for sentence in warnings(ODD[name], summarize(ODD[name])):
    assert sentence in page.text
  assert not re.search(r'\b(nan|inf|None)\b', page.text)
  for width in (60, 80, 100, 140):
    lines = printed(ODD[name], width).splitlines()
    assert max(map(len, lines)) <= width


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
  made = comparison([run('sgd', 3, 0.9), diverged('sam', 3)])
  write_report(made, tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text('utf-8').splitlines()

  def refuse(constant):
    raise AssertionError(constant)

  rows = [json.loads(line, parse_constant=refuse) for line in lines]
  expected = [
    {'method': of_run.method, 'seed': 3, 'kind': kind, **row}
    for of_run in made.runs
    for kind, part in (('log', of_run.log), ('evaluation', of_run.evaluations))
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


def test_headline_follows_the_intervals():
  assert said(of_accuracies(sgd=SGD, sam=BETTER)) == (
    'sam is more accurate than sgd (+3.10 points)'
  )
  assert said(of_accuracies(sgd=SGD, sam=WORSE)) == (
    'sam is less accurate than sgd (\N{MINUS SIGN}4.90 points)'
  )
  assert said(of_accuracies(sgd=SGD, sam=SIMILAR, asam=SIMILAR)) == (
    "No method's difference to sgd is resolved with 3 seeds"
  )
  assert said(of_accuracies(sgd=SGD, sam=SIMILAR)) == (
    'The difference between sam and sgd is not resolved with 3 seeds'
  )
  assert said(of_accuracies(sgd=SGD, sam=BETTER, asam=SIMILAR, gsam=WORSE)) == (
    'sam is more accurate than sgd (+3.10 points); gsam is less accurate than'
    ' sgd (\N{MINUS SIGN}4.90 points); 1 other is not resolved'
  )


def test_headline_counts_where_names_would_be_too_many():
  many = {f'm{index}': BETTER for index in range(5)}
  many['m3'] = [value + 0.01 for value in BETTER]
  assert said(of_accuracies(sgd=SGD, **many)) == (
    '5 of 5 methods are more accurate than sgd, m3 the most (+4.10 points)'
  )


def test_headline_without_intervals_claims_nothing():
  assert 'With one seed' in said(ODD['one seed'])
  assert said(ODD['no runs']).startswith('No run came to its end')
  assert said(ODD['base missing']).startswith('No comparison: sgd')
  assert said(ODD['base only']).startswith('Only sgd has run')
  assert said(ODD['equal']) == 'No difference to sgd can be judged'


def test_findings_give_the_part_of_luck_and_the_cost():
  made = usual()
  text = ' '.join(findings(made, summarize(made)))
  assert 'asam with +0.17 points' in text
  assert 'up to 10%' in text
  assert 'A step takes 2.00 (sam) times as long as one of sgd.' in text


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


def test_table_shows_base_first_and_marks_what_is_not_resolved():
  text = printed(usual())
  lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
  assert text.index(lines['sgd']) < text.index(lines['sam'])
  assert '▲ +3.10 (' in lines['sam']
  assert '~ +0.17 (' in lines['asam']
  assert '2.00\N{MULTIPLICATION SIGN}' in lines['sam']


def test_table_gives_up_columns_before_it_folds():
  names = ('sharpness', 'eigen')
  wide, narrow = printed(usual(), 100), printed(usual(), 70)
  assert all(name in wide for name in names)
  assert not any(name in narrow for name in names)
  assert '▲ +3.10 (' in narrow


def test_matplotlib_is_imported_only_to_draw():
  code = (
    'import sys, optax_sam.train.report;'
    'heavy = {"matplotlib", "jinja2", "scipy.stats"} & set(sys.modules);'
    'sys.exit(str(heavy) if heavy else 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
