import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from optax_sam.train.reports import paired
from optax_sam.train.reports.results import Metric
from optax_sam.train.reports.summary import summarize
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


def test_mean_deviation_and_interval_equal_those_by_hand():
  base, sam = summarize(of_accuracies(sam=SAM, sgd=SGD))  # the base first
  assert (base.method, base.is_base, base.seeds) == ('sgd', True, 4)
  assert base.score == pytest.approx(0.915)
  # Deviations -1.5, 0.5, -0.5, 1.5 hundredths: 5 / 3 in squares.
  assert base.score_deviation == pytest.approx(0.01 * math.sqrt(5 / 3))
  # Differences 3, 2, 4, 1 hundredths: mean 2.5, variance 5 / 3; the 97.5%
  # quantile of Student's t with 3 degrees of freedom is 3.182446.
  half = 0.01 * 3.182446 * math.sqrt(5 / 3 / 4)
  assert sam.difference.mean == pytest.approx(0.025)
  assert sam.difference.interval == pytest.approx((0.025 - half, 0.025 + half))
  assert sam.difference.significant
  assert sam.difference.reason == ''


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
  difference = summarize(of_accuracies(sgd=sgd, sam=sam))[1].difference
  assert difference.mean == pytest.approx(sam[0] - sgd[0], rel=1e-3)
  assert difference.interval is None
  assert not difference.significant
  assert reason in difference.reason


def test_without_a_common_seed_there_is_no_difference():
  sam = summarize(comparison([run('sgd', 0, 0.9), run('sam', 1, 0.9)]))[1]
  assert sam.difference.mean is None
  assert 'no seed' in sam.difference.reason
  (sam,) = summarize(of_accuracies(sam=SAM))
  assert not sam.is_base
  assert sam.score == pytest.approx(0.94)
  assert sam.difference.mean is None
  assert 'sgd has no complete run' in sam.difference.reason


def test_only_common_seeds_are_paired():
  runs = [run('sgd', seed, value) for seed, value in enumerate(SGD)]
  runs += [run('sam', 3, 0.96), run('sam', 1, 0.94), run('sam', 9, 0.5)]
  sam = summarize(comparison(runs))[1]
  assert sam.seeds == 3
  assert sam.difference.by_seed == pytest.approx({3: 0.03, 1: 0.02})
  assert sam.difference.mean == pytest.approx(0.025)


@pytest.mark.parametrize(
  ('other', 'unfinished'),
  [
    (run('sgd', 1, 0.1, stop=STEPS // 2), 1),
    (run('sgd', 1, math.nan), 0),
  ],
)
def test_runs_without_a_final_accuracy_do_not_count(other, unfinished):
  (base,) = summarize(comparison([run('sgd', 0, 0.9), other]))
  assert (base.seeds, base.unfinished) == (1, unfinished)
  assert base.score == pytest.approx(0.9)


def test_a_diverged_run_counts_and_is_counted():
  base, sam = summarize(
    comparison([run('sgd', 0, 0.9), run('sam', 0, 0.8), diverged('sam', 1)])
  )
  assert (sam.diverged, base.diverged) == (1, 0)
  assert sam.score == pytest.approx(0.45)
  # Its sharpness is NaN; the mean is over the finite ones.
  assert sam.sharpness['sam_sharpness'] == pytest.approx(0.01)


def test_cost_and_sharpness():
  sam = summarize(
    comparison(
      [
        run('sgd', 0, 0.9),
        run('sam', 0, 0.9, fraction=0.5),
        run('sam', 1, 0.9, fraction=1.0),
      ],
      timings=[timing('sam', [1.0, 4.0, 2.0, 3.0, 5.0])],
    )
  )[1]
  assert sam.second_gradients == pytest.approx(0.75)
  assert sam.relative_time == 3.0
  assert sam.relative_time_quartiles == (2.0, 4.0)
  assert sam.temporary_bytes == 3 * 2**20
  assert sam.sharpness['sam_sharpness'] == pytest.approx(0.015)
  assert sam.sharpness['top_eigenvalue'] == pytest.approx(5.0)


def test_significance_is_corrected_for_the_number_of_methods():
  others = {'asam': [0.90, 0.93, 0.90, 0.93], 'k_sam': [0.91, 0.92, 0.90, 0.93]}
  alone = summarize(of_accuracies(sgd=SGD, sam=SAM))[1].difference
  together = summarize(of_accuracies(sgd=SGD, sam=SAM, **others))
  found = [row.difference for row in together[1:]]
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
  assert together[0].difference.adjusted_p_value is None


def test_the_direction_of_a_metric():
  runs = of_accuracies(sgd=SGD, sam=SAM).runs
  lower = Metric('accuracy', higher_is_better=False)
  sam = summarize(comparison(runs, metric=lower))[1].difference
  assert sam.mean == pytest.approx(0.025)
  assert sam.gain == pytest.approx(-0.025)


def test_with_one_seed_the_test_examples_decide():
  wrong = [0.0] * 20 + [1.0] * 180
  base, sam = summarize(
    comparison(
      [
        run('sgd', 0, 0.9, test_values=wrong),
        run('sam', 0, 1.0, test_values=[1.0] * 200),
      ]
    )
  )
  assert base.difference.p_value is None
  assert sam.difference.method == paired.BOOTSTRAP
  assert sam.difference.significant


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


def test_a_run_of_more_steps_than_others_is_complete_at_its_own_end():
  short = run('sgd', 0, 0.9, planned_steps=2 * STEPS)
  whole = run('sgd', 1, 0.9, stop=2 * STEPS, planned_steps=2 * STEPS)
  (base,) = summarize(comparison([short, whole]))
  assert (base.seeds, base.unfinished) == (1, 1)
