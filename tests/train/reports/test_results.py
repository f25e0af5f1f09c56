import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from optax_sam.train.reports import tables
from optax_sam.train.reports.paired import differences
from optax_sam.train.reports.results import Metric
from tests.train.reports.comparisons import (
  STEPS,
  comparison,
  diverged,
  of_accuracies,
  run,
  timing,
)

SGD = [0.90, 0.92, 0.91, 0.93]
SAM = [0.93, 0.94, 0.95, 0.94]


def cells(made, method):
  """The cells of a method in the main table, by the title of the column."""
  table = tables.results(made)
  titles = [title for title, _ in table.columns]
  return dict(zip(titles, table.rows[method], strict=True))


def test_mean_deviation_and_interval_equal_those_by_hand():
  made = of_accuracies(sam=SAM, sgd=SGD)
  assert list(differences(made)) == ['sgd', 'sam']  # the base first
  score = cells(made, 'sgd')['test accuracy']
  assert score.value == pytest.approx(91.5)
  # Deviations -1.5, 0.5, -0.5, 1.5 hundredths: 5 / 3 in squares.
  assert score.note == f'± {math.sqrt(5 / 3):.2f}'
  assert cells(made, 'sgd')['runs'].text == '4'
  # Differences 3, 2, 4, 1 hundredths: mean 2.5, variance 5 / 3; the 97.5%
  # quantile of Student's t with 3 degrees of freedom is 3.182446.
  half = 0.01 * 3.182446 * math.sqrt(5 / 3 / 4)
  sam = differences(made)['sam']
  assert sam.mean == pytest.approx(0.025)
  assert sam.interval == pytest.approx((0.025 - half, 0.025 + half))
  assert sam.significant
  assert sam.reason == ''


def in_float32(*right):
  return (np.float32(right) / np.float32(797)).astype(float)


@pytest.mark.parametrize(
  ('sgd', 'sam', 'reason'),
  [
    ([0.9], [0.92], 'one seed'),
    ([0.9, 0.8], [0.92, 0.82], 'same amount'),
    # Accuracies differ by one example, rounded to float32.
    (in_float32(788, 787), in_float32(789, 788), 'same amount'),
  ],
)
def test_without_variance_there_is_no_interval(sgd, sam, reason):
  difference = differences(of_accuracies(sgd=sgd, sam=sam))['sam']
  assert difference.mean == pytest.approx(sam[0] - sgd[0], rel=1e-3)
  assert difference.interval is None
  assert not difference.significant
  assert reason in difference.reason


def test_without_a_common_seed_there_is_no_difference():
  runs = [run('sgd', 0, 0.9), run('sam', 1, 0.9)]
  for made in (comparison(runs), of_accuracies(sam=SAM)):
    sam = differences(made)['sam']
    assert sam.mean is None
    assert 'no seed' in sam.reason


def test_only_common_seeds_are_paired():
  runs = [run('sgd', seed, value) for seed, value in enumerate(SGD)]
  runs += [run('sam', 3, 0.96), run('sam', 1, 0.94), run('sam', 9, 0.5)]
  sam = differences(comparison(runs))['sam']
  assert sam.by_seed == pytest.approx({3: 0.03, 1: 0.02})
  assert sam.mean == pytest.approx(0.025)
  assert cells(comparison(runs), 'sam')['runs'].text == '3'


def test_a_diverged_run_counts_and_is_counted():
  made = comparison(
    [run('sgd', 0, 0.9), run('sam', 0, 0.8), diverged('sam', 1)]
  )
  sam = cells(made, 'sam')
  assert (sam['runs'].text, sam['runs'].detail) == ('2', '1 diverged')
  assert cells(made, 'sgd')['runs'].detail == ''
  assert sam['test accuracy'].value == pytest.approx(45)
  # Its sharpness is NaN; the mean is over the finite ones.
  assert sam['SAM sharpness'].value == pytest.approx(0.01)


def test_cost_and_sharpness():
  made = comparison(
    [
      run('sgd', 0, 0.9),
      run('sam', 0, 0.9, fraction=0.5),
      run('sam', 1, 0.9, fraction=1.0),
    ],
    timings=[timing('sam', [1.0, 4.0, 2.0, 3.0, 5.0])],
  )
  sam = cells(made, 'sam')
  assert sam['perturbed gradients'].value == pytest.approx(75)
  assert sam['time per step'].value == 3.0
  assert sam['peak temporary memory'].value == 3
  assert sam['SAM sharpness'].value == pytest.approx(0.015)
  assert sam['top eigenvalue'].value == pytest.approx(5.0)


def test_significance_is_corrected_for_the_number_of_methods():
  others = {'asam': [0.90, 0.93, 0.90, 0.93], 'k_sam': [0.91, 0.92, 0.90, 0.93]}
  alone = differences(of_accuracies(sgd=SGD, sam=SAM))['sam']
  base, *found = differences(of_accuracies(sgd=SGD, sam=SAM, **others)).values()
  assert alone.adjusted_p_value == alone.p_value
  assert alone.significant
  p_values = [
    stats.ttest_rel(values, SGD).pvalue for values in (SAM, *others.values())
  ]
  assert [one.p_value for one in found] == pytest.approx(p_values)
  # The smallest of three p-values counts three times.
  assert found[0].adjusted_p_value == pytest.approx(3 * p_values[0])
  assert found[0].adjusted_p_value > 0.05
  assert not found[0].significant
  # Intervals are those of single methods.
  assert found[0].interval == alone.interval
  assert base.adjusted_p_value is None


def test_the_direction_of_a_metric():
  runs = of_accuracies(sgd=SGD, sam=SAM).runs
  lower = Metric('accuracy', higher_is_better=False)
  sam = differences(comparison(runs, metric=lower))['sam']
  assert sam.mean == pytest.approx(0.025)
  assert sam.verdict == 'worse'


def test_with_one_seed_the_test_examples_decide():
  wrong = [0.0] * 20 + [1.0] * 180
  runs = [
    run('sgd', 0, 0.9, test_values=wrong),
    run('sam', 0, 1.0, test_values=[1.0] * 200),
  ]
  base, sam = differences(comparison(runs)).values()
  assert base.p_value is None
  assert sam.significant


@pytest.mark.parametrize(
  ('higher_is_better', 'score'), [(True, 0.45), (False, 0.9)]
)
def test_a_diverged_run_without_a_final_metric_counts_with_its_worst(
  higher_is_better, score
):
  lost = run('sgd', 0, 0.9)  # evaluated as 0.45, then 0.9
  rows = [*lost.evaluations, {'step': STEPS, 'test_accuracy': math.nan}]
  lost = dataclasses.replace(
    lost, evaluations=rows, stopped='the loss is not finite'
  )
  found = comparison(
    [lost], metric=Metric(higher_is_better=higher_is_better)
  ).scores('sgd')
  assert found == {0: score}
  assert lost.diverged
