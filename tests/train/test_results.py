import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from optax_sam.train.reports.paired import paired_difference
from optax_sam.train.reports.results import summarize
from tests.train.comparisons import (
  STEPS,
  comparison,
  diverged,
  of_accuracies,
  run,
  timing,
)

SGD = [0.90, 0.92, 0.91, 0.93]
SAM = [0.93, 0.94, 0.95, 0.94]


def test_mean_deviation_and_interval_are_those_computed_by_hand():
  base, sam = summarize(of_accuracies(sgd=SGD, sam=SAM))
  assert (base.method, base.is_base, base.seeds) == ('sgd', True, 4)
  assert base.accuracy == pytest.approx(0.915)
  # Deviations -1.5, 0.5, -0.5, 1.5 hundredths: 5 / 3 in squares.
  assert base.accuracy_deviation == pytest.approx(0.01 * math.sqrt(5 / 3))
  # Differences 3, 2, 4, 1 hundredths: mean 2.5, variance 5 / 3; the 97.5%
  # quantile of Student's t with 3 degrees of freedom is 3.182446.
  half = 0.01 * 3.182446 * math.sqrt(5 / 3 / 4)
  assert sam.difference.mean == pytest.approx(0.025)
  assert sam.difference.interval == pytest.approx((0.025 - half, 0.025 + half))
  assert sam.difference.resolved
  assert sam.difference.reason == ''


@pytest.mark.parametrize('seeds', [2, 3, 7, 20])
def test_interval_agrees_with_the_paired_t_test(seeds):
  generator = np.random.default_rng(seeds)
  base = generator.normal(0.9, 0.05, seeds)
  sam = base + generator.normal(0.01, 0.01, seeds)
  found = paired_difference(dict(enumerate(sam)), dict(enumerate(base)))
  expected = stats.ttest_rel(sam, base).confidence_interval(0.95)
  assert found.interval == pytest.approx((expected.low, expected.high))


def test_resolved_is_what_the_t_test_calls_significant():
  outcomes = set()
  for seed in range(30):
    generator = np.random.default_rng(seed)
    base = generator.normal(0.9, 0.01, 4)
    sam = base + generator.normal(0.01, 0.008, 4)
    found = paired_difference(dict(enumerate(sam)), dict(enumerate(base)))
    significant = bool(stats.ttest_rel(sam, base).pvalue < 0.05)
    assert found.resolved == significant
    outcomes.add(significant)
  assert outcomes == {True, False}


def test_pairing_removes_what_seeds_have_in_common():
  spread = summarize(
    of_accuracies(sgd=[0.5, 0.7, 0.9], sam=[0.511, 0.709, 0.91])
  )[1]
  assert spread.accuracy_deviation > 0.19
  assert spread.difference.resolved


def test_one_seed_gives_a_difference_but_no_interval():
  sam = summarize(of_accuracies(sgd=[0.9], sam=[0.92]))[1]
  assert sam.accuracy_deviation is None
  assert sam.difference.mean == pytest.approx(0.02)
  assert sam.difference.interval is None
  assert not sam.difference.resolved
  assert 'one seed' in sam.difference.reason


def test_equal_differences_give_no_interval_of_zero_width():
  sam = summarize(of_accuracies(sgd=[0.9, 0.8], sam=[0.92, 0.82]))[1]
  assert sam.difference.mean == pytest.approx(0.02)
  assert sam.difference.interval is None
  assert 'same amount' in sam.difference.reason


def test_without_the_base_optimizer_there_is_no_difference():
  (sam,) = summarize(of_accuracies(sam=SAM))
  assert not sam.is_base
  assert sam.accuracy == pytest.approx(0.94)
  assert sam.difference.mean is None
  assert 'sgd has no complete run' in sam.difference.reason


def test_base_comes_first_and_the_others_keep_their_order():
  rows = summarize(of_accuracies(sam=SAM, asam=SAM, sgd=SGD, gsam=SAM))
  assert [row.method for row in rows] == ['sgd', 'sam', 'asam', 'gsam']


def test_equal_differences_are_equal_in_float32():
  right = {0: (788, 789), 1: (787, 788), 2: (786, 787)}
  base, sam = (
    {seed: float(np.float32(pair[i] / 797)) for seed, pair in right.items()}
    for i in (0, 1)
  )
  found = paired_difference(sam, base)
  assert found.interval is None
  assert not found.resolved


def test_only_seeds_that_both_have_are_paired():
  runs = [run('sgd', seed, value) for seed, value in enumerate(SGD)]
  runs += [run('sam', 3, 0.96), run('sam', 1, 0.94), run('sam', 9, 0.5)]
  sam = summarize(comparison(runs))[1]
  assert sam.seeds == 3
  assert sam.difference.by_seed == pytest.approx({3: 0.03, 1: 0.02})
  assert sam.difference.mean == pytest.approx(0.025)


def test_no_common_seed_is_said():
  sam = summarize(comparison([run('sgd', 0, 0.9), run('sam', 1, 0.9)]))[1]
  assert sam.difference.mean is None
  assert 'no seed' in sam.difference.reason


def test_a_run_stopped_early_does_not_count():
  runs = [run('sgd', 0, 0.9), run('sgd', 1, 0.1, stop=STEPS // 2)]
  (base,) = summarize(comparison(runs, interrupted=True))
  assert (base.seeds, base.unfinished) == (1, 1)
  assert base.accuracy == pytest.approx(0.9)


def test_a_diverged_run_counts_and_is_counted():
  base, sam = summarize(
    comparison([run('sgd', 0, 0.9), run('sam', 0, 0.8), diverged('sam', 1)])
  )
  assert (sam.diverged, base.diverged) == (1, 0)
  assert sam.accuracy == pytest.approx(0.45)
  # Its sharpness is NaN; the mean is over the finite ones.
  assert sam.sam_sharpness == pytest.approx(0.01)


def test_a_run_without_a_finite_accuracy_is_left_out():
  runs = [run('sgd', 0, 0.9), run('sgd', 1, math.nan)]
  (base,) = summarize(comparison(runs))
  assert base.seeds == 1
  assert base.accuracy == pytest.approx(0.9)


def test_cost_and_sharpness():
  sam = summarize(
    comparison(
      [
        run('sgd', 0, 0.9),
        run('sam', 0, 0.9, share=0.5),
        run('sam', 1, 0.9, share=1.0),
      ],
      timings=[timing('sam', [1.0, 4.0, 2.0, 3.0, 5.0])],
    )
  )[1]
  assert sam.second_gradients == pytest.approx(0.75)
  assert sam.relative_time == 3.0
  assert sam.relative_time_quartiles == (2.0, 4.0)
  assert sam.temporary_bytes == 3 * 2**20
  assert sam.sam_sharpness == pytest.approx(0.015)
  assert sam.top_eigenvalue == pytest.approx(5.0)


def test_what_was_not_measured_is_none():
  (base,) = summarize(
    comparison([run('sgd', 0, 0.9, sharpness={}, log=[])], timings=[])
  )
  missing = dataclasses.asdict(base)
  for name in (
    'second_gradients',
    'relative_time',
    'relative_time_quartiles',
    'sam_sharpness',
    'top_eigenvalue',
    'temporary_bytes',
  ):
    assert missing[name] is None


def test_no_runs_give_no_rows():
  assert summarize(comparison([])) == []
