"""The data of the pages, and names that are hostile to them."""

import math
import os

import numpy as np
import pytest

from optax_sam.catalog import METHODS
from optax_sam.train.reports import tables
from optax_sam.train.reports.comparison_report import render_page
from optax_sam.train.reports.results import Metric, Trial
from tests.train.reports.comparisons import (
  BETTER,
  SGD,
  SIMILAR,
  Page,
  comparison,
  of_accuracies,
  run,
  usual,
)

HOSTILE = '</script><script>alert(1)</script><!--'


def figures(made):
  return Page(render_page(made)).data['figures']


def test_curves_are_means_over_seeds_with_their_range():
  (test, _, _) = figures(usual())['test-metric']['curves']
  assert (test['method'], test['steps']) == ('sgd', [10, 20])
  # In percent; the accuracies at the middle are halves of those at the end.
  assert test['y'] == pytest.approx([100 * np.mean(SGD) / 2, 91], rel=1e-4)
  assert (test['low'][-1], test['high'][-1]) == (90, 92)
  gap = figures(usual())['gap']['curves'][0]['y'][-1]
  assert gap == pytest.approx(100 - 91)


def test_costs_are_those_of_the_rows():
  runs = [run('sgd', seed, 0.9) for seed in (0, 1)]
  for factor, one in enumerate(runs, 1):
    for row in one.log:
      row |= {'gradients': 7.0 * row['step'], 'seconds': factor * row['step']}
  (curve,) = figures(comparison(runs))['training-loss']['curves']
  steps = np.array(curve['steps'])
  assert curve['gradients'] == pytest.approx(7 * steps)
  assert curve['seconds'] == pytest.approx(1.5 * steps)
  del runs[1].log[0]['seconds']
  (curve,) = figures(comparison(runs))['training-loss']['curves']
  assert curve['seconds'] is None


def test_long_curves_are_averaged_over_spans():
  rows = [
    {'step': s, 'loss': 2.0 * s, 'second_gradients': 0} for s in range(1, 1001)
  ]
  (curve,) = figures(comparison([run('sgd', 0, 0.9, log=rows)]))[
    'training-loss'
  ]['curves']
  assert curve['steps'] == pytest.approx(np.arange(5.5, 1000, 10))
  assert curve['y'] == pytest.approx(2 * np.arange(5.5, 1000, 10))


def test_the_radius_that_was_tuned_is_plotted():
  trials = [
    Trial('sam', {'rho': rho}, 0, 1.0, value)
    for rho, value in ((0.2, 0.9), (0.1, 0.8), (0.4, 0.3))
  ]
  made = of_accuracies(sgd=SGD, sam=BETTER)
  made = comparison(made.runs, trials=trials)
  found = figures(made)['sensitivity-to-the-radius']
  (curve,) = found['curves']
  assert curve['x'] == [0.1, 0.2, 0.4]
  assert curve['y'] == pytest.approx([80, 90, 30])
  assert found['x_log']


def test_planes_have_common_colours_and_their_solution_in_the_middle():
  at = (-1.0, 0.0, 1.0)
  planes = {
    name: [
      {'x': x, 'y': y, 'loss': lowest + x * x + 2 * y * y}
      for y in at
      for x in at
    ]
    for name, lowest in (('sgd', 0.1), ('sam', 1.0))
  }
  planes['sam'][0]['loss'] = math.nan
  found = figures(comparison(usual().runs, planes=planes))
  base, other = found['plane-sgd'], found['plane-sam']
  assert base['plane'][1] == pytest.approx([1.1, 0.1, 1.1])
  assert base['plane'][2][1] == pytest.approx(2.1)
  assert other['plane'][0][0] is None
  expected = [-1, math.log10(4)]
  assert other['range'] == base['range'] == pytest.approx(expected, rel=1e-4)


def test_hostile_names_stay_texts():
  runs = [run('sgd', 0, 0.9), run(HOSTILE, 0, 0.9, settings={'a': HOSTILE})]
  made = comparison(runs, settings={'dataset': HOSTILE}, command=HOSTILE)
  page = Page(render_page(made))
  page.assert_complete_in_itself()
  assert HOSTILE in page.data['styles']
  assert page.data['styles'][HOSTILE]['text'].startswith('&lt;/script&gt;')
  assert HOSTILE in page.text


def test_control_characters_of_names_are_escaped():
  escape = '\x1b]0;red\x07'
  runs = [run('sgd', 0, 0.9), run(escape, 0, 0.9, settings={'a': escape})]
  made = comparison(
    runs, settings={'dataset': escape, 'methods': [escape, 'b']}
  )
  table = tables.results(made)
  found = [made.table(), render_page(made), tables.latex(table)]
  for text in (*found, tables.markdown(table), made._repr_html_()):
    assert 'x1b]0;red' in text
    assert not {'\x1b', '\x07'} & set(text)


def test_files_follow_the_umask(tmp_path):
  former = os.umask(0o027)
  try:
    usual().report(tmp_path / 'out')
  finally:
    os.umask(former)
  modes = {path.stat().st_mode & 0o777 for path in (tmp_path / 'out').iterdir()}
  assert modes == {0o640}


def test_a_metric_that_is_better_if_lower_is_not_in_percent():
  metric = Metric('error', higher_is_better=False, percent=False)
  runs = []
  for method, values in (('sgd', [2.0, 2.2, 2.1]), ('sam', [1.0, 1.1, 1.3])):
    for seed, value in enumerate(values):
      made = run(method, seed, 0.0)
      rows = [row | {'test_error': value} for row in made.evaluations]
      runs.append(run(method, seed, 0.0, evaluations=rows))
  made = comparison(runs, metric=metric)
  text = Page(render_page(made)).text
  assert 'SAM has a better test error than SGD (\N{MINUS SIGN}0.967)' in text
  assert made.best() == 'sam'
  assert '%' not in text.partition('How to read')[0].partition('Results')[0]


def test_all_methods_fit_into_the_page():
  made = of_accuracies(sgd=SGD, **dict.fromkeys(METHODS, SIMILAR))
  long = [
    {'step': s, 'loss': 1 / s, 'second_gradients': s} for s in range(1, 500)
  ]
  runs = [run(x.method, x.seed, 0.9, log=long) for x in made.runs]
  page = Page(render_page(comparison(runs, total_steps=20)))
  page.assert_complete_in_itself()
  found = page.data['styles'].values()
  looks = {(x['color'], x['dash']) for x in found}
  assert len(looks) == len(METHODS) + 1


def test_names_are_those_of_the_papers_with_links():
  page = Page(render_page(of_accuracies(sgd=SGD, ae_look_sam=BETTER, mine=SGD)))
  assert 'AE-LookSAM' in page.text
  assert METHODS['ae_look_sam'].paper.link in page.values('href')
  labels = [style['label'] for style in page.data['styles'].values()]
  assert labels == ['SGD', 'AE-LookSAM', 'mine']


def test_figures_and_buttons_have_labels():
  page = Page(render_page(usual()))
  plots = page.values('data-figure')
  assert plots
  assert set(plots) == set(page.data['figures'])
  assert len([x for x in page.values('role') if x == 'img']) == len(plots)
  saves = [x for x in page.values('aria-label') if x.startswith('Save the fig')]
  assert len(saves) == 2 * len(plots)


def test_tables_for_markdown_and_latex():
  made = of_accuracies(sgd=SGD, my_sam=BETTER)
  table = tables.results(made)
  lines = tables.markdown(table).splitlines()
  assert len(lines) == 4
  assert {line.count(' | ') for line in lines} == {6}
  assert lines[3].startswith(r'| my\_sam | 94.10 ± 1.05 | +3.10 (')
  rows = tables.latex(table).splitlines()
  assert rows[0] == r'\begin{tabular}{lrrrrrr}'
  assert rows[5].strip().startswith(r'my\_sam & 94.10 $\pm$ 1.05 & +3.10 (')
  assert rows[-2:] == [r'  \bottomrule', r'\end{tabular}']


def test_a_single_run_has_a_page(tmp_path):
  one = comparison([run('sam', 3, 0.875)], base='sam', seconds=math.nan)
  path = one.report(tmp_path / 'report.html')
  page = Page(path.read_text('utf-8'))
  page.assert_complete_in_itself()
  assert 'SAM on digits: 87.50% test accuracy' in page.text
  assert 'training-loss' in page.data['figures']
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']
