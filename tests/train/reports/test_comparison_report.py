import csv
import io
import json
import math
import re

import pytest
import rich.console

from optax_sam.train.reports.comparison_report import (
  headline,
  print_table,
  render_page,
  warnings,
  write_report,
)
from optax_sam.train.reports.paired import differences
from tests.train.problems import names
from tests.train.reports.comparisons import (
  BETTER,
  ODD,
  SGD,
  SIMILAR,
  WORSE,
  Page,
  comparison,
  diverged,
  of_accuracies,
  run,
  usual,
)


def test_the_page_is_self_contained():
  page = Page(render_page(usual()))
  page.assert_complete_in_itself()
  facts = ('optax-sam compare --seeds 3', '0.10.0', '75 s')
  for fact in (*facts, 'optax-sam: 3 methods on digits, 2025-01-02'):
    assert fact in page.text


@pytest.mark.parametrize('name', ODD)
def test_unusual_comparisons_have_page_and_files(name, tmp_path):
  write_report(ODD[name], tmp_path)
  page = Page((tmp_path / 'report.html').read_text('utf-8'))
  rows = differences(ODD[name])
  assert headline(ODD[name], rows) in page.text
  before_results = page.text.partition('How to read this')[0]
  for sentence in warnings(ODD[name], rows):
    assert sentence in before_results
  assert not re.search(r'\b(nan|inf|None)\b', page.text)
  page.assert_complete_in_itself()


@pytest.mark.parametrize(
  ('accuracies', 'claims'),
  [
    ({'sam': BETTER}, ['better']),
    ({'sam': WORSE}, ['worse']),
    ({'sam': SIMILAR, 'asam': SIMILAR}, []),
    ({'sam': BETTER, 'asam': SIMILAR, 'gsam': WORSE}, ['better', 'worse']),
    ({f'm{index}': BETTER for index in range(5)}, ['better']),
  ],
)
def test_the_headline_claims_no_more_than_the_intervals(accuracies, claims):
  made = of_accuracies(sgd=SGD, **accuracies)
  said = headline(made, differences(made))
  found = re.findall(r'(better|worse) test accuracy than SGD', said)
  assert found == claims


def test_finished_runs_without_a_finite_metric_are_not_called_missing():
  made = of_accuracies(sgd=[math.nan, math.nan], sam=BETTER[:2])
  said = headline(made, differences(made))
  assert said == 'No comparison: SGD has no finite test accuracy'


def test_csv_has_a_row_per_run_in_full_precision(tmp_path):
  third = run('sam', 1, 1 / 3, fraction=1 / 7, settings={'period': 5})
  made = comparison([run('sgd', 0, 0.1 + 0.2), run('sam', 0, 0.9), third])
  write_report(made, tmp_path)
  with (tmp_path / 'results.csv').open(newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  for row, of_run in zip(rows, made.runs, strict=True):
    assert (row['method'], int(row['seed'])) == (of_run.method, of_run.seed)
    assert float(row['test_accuracy']) == of_run.last('test_accuracy')
    fraction = float(row['second_gradient_share'])
    assert fraction == of_run.second_gradient_share
    assert float(row['sam_sharpness']) == of_run.sharpness['sam_sharpness']
    assert float(row['seconds']) == of_run.seconds
  assert [row['setting_rho'] for row in rows] == ['', '0.05', '']
  assert [row['setting_period'] for row in rows] == ['', '', '5']


def test_jsonl_has_every_row_and_is_strict_json(tmp_path):
  lost = [{'position': 0.5, 'loss': math.nan}]
  found = [{'step': 9, 'validation_loss': math.nan, 'first_segment': 0}]
  made = comparison(
    [run('sgd', 3, 0.9, landscape=lost, validations=found), diverged('sam', 3)]
  )
  write_report(made, tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text('utf-8').splitlines()
  rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
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
    row |= {name: None for name, value in row.items() if value != value}
  assert rows == expected
  assert any(row.get('loss', 0) is None for row in rows)


def test_files_are_replaced_without_leftovers(tmp_path):
  (tmp_path / 'report.html').write_text('old', encoding='utf-8')
  write_report(usual(), tmp_path)
  assert names(tmp_path) == {'metrics.jsonl', 'report.html', 'results.csv'}
  assert (tmp_path / 'report.html').read_text('utf-8') != 'old'


def test_the_table_shows_the_base_first_and_marks_significance():
  stream = io.StringIO()
  print_table(usual(), rich.console.Console(file=stream, width=80))
  text = stream.getvalue()
  lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
  assert text.index(lines['SGD']) < text.index(lines['SAM'])
  assert re.search(r'\+3\.10 \(.*\) better', lines['SAM'])
  assert re.search(r'\+0\.17 \(.*\) ', lines['ASAM'])
  assert 'better' not in lines['ASAM']
  assert lines['SAM'].split()[-1] == '2.00'
