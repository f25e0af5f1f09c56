import itertools
import math

import numpy as np
import pytest
from scipy import stats

from optax_sam.train.reports.paired import holm, paired_difference


def test_student_t_is_that_of_scipy():
  method = {0: 0.93, 1: 0.951, 2: 0.942, 5: 0.9}
  base = {0: 0.9, 1: 0.92, 2: 0.95, 7: 0.1}
  found = paired_difference(method, base)
  test = stats.ttest_rel([0.93, 0.951, 0.942], [0.9, 0.92, 0.95])
  assert found.p_value == pytest.approx(test.pvalue)
  interval = test.confidence_interval(0.95)
  assert found.interval == pytest.approx((interval.low, interval.high))
  assert not found.significant


@pytest.mark.parametrize('scale', [1e-9, 1.0, 1e6])
def test_zero_variance_is_judged_relative_to_the_scores(scale):
  base = {seed: scale * value for seed, value in enumerate([1, 2, 3])}
  varied = {0: scale * 1.1, 1: scale * 2.2, 2: scale * 3.4}
  assert paired_difference(varied, base).p_value is not None
  shifted = {seed: value + 0.1 * scale for seed, value in base.items()}
  found = paired_difference(shifted, base)
  assert found.p_value is None
  assert 'same amount' in found.reason


def test_holm_equals_its_definition_by_hand():
  # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, each at least the former.
  found = holm([0.02, 0.04, 0.01, 0.03])
  assert found == pytest.approx([0.06, 0.06, 0.04, 0.06])
  assert holm([0.5, 0.9]) == [1.0, 1.0]
  assert holm([0.03]) == [0.03]
  assert holm([]) == []


@pytest.mark.parametrize(
  'p_values', list(itertools.permutations([0.005, 0.02, 0.04]))
)
def test_holm_rejects_those_of_the_step_down_procedure(p_values):
  rejected = [False] * len(p_values)
  for rank, index in enumerate(np.argsort(p_values)):
    if p_values[index] > 0.05 / (len(p_values) - rank):
      break
    rejected[index] = True
  assert [p <= 0.05 for p in holm(p_values)] == rejected


def correct(examples, *wrong):
  """Accuracies of examples, 0 at the given ones."""
  return [float(index not in wrong) for index in range(examples)]


def of_examples(method, base):
  """The difference of one seed each, by their examples."""
  return paired_difference(
    {0: np.mean(method)}, {0: np.mean(base)}, ({0: method}, {0: base})
  )


def test_with_one_seed_the_examples_decide():
  # The method corrects 20 of 400 examples and loses 2. The exact test of the 22
  # that differ, under equal chances, has p = 0.0001.
  method, base = correct(400, 20, 21), correct(400, *range(20))
  found = of_examples(method, base)
  exact = stats.binomtest(20, 22).pvalue
  assert found.significant
  assert found.p_value < 0.001
  assert exact < 0.001
  # The same, three against two: nothing to see.
  found = of_examples(correct(400, 3, 4), correct(400, 0, 1, 2))
  assert not found.significant
  assert found.p_value > 0.5


@pytest.mark.parametrize('scale', [0.01, 100.0])
def test_the_bootstrap_interval_is_that_of_scipy(scale):
  generator = np.random.default_rng(3)
  base = scale * generator.normal(size=300)
  method = base + scale * generator.normal(0.1, 0.5, size=300)
  found = of_examples(list(method), list(base))
  expected = stats.bootstrap(
    (method - base,), np.mean, method='percentile', rng=generator
  ).confidence_interval
  width = expected.high - expected.low
  assert found.interval == pytest.approx(tuple(expected), abs=0.05 * width)
  # Student's t of the examples is close, because there are many.
  test = stats.ttest_1samp(method - base, 0)
  assert found.p_value == pytest.approx(test.pvalue, abs=0.01)
  assert of_examples(list(method), list(base)) == found  # reproducible


def test_without_variance_seeds_and_examples_are_resampled_together():
  # Each seed corrects five other examples, so all differ by the same amount.
  seeds = range(3)
  base = {seed: correct(100, *range(30)) for seed in seeds}
  method = {
    seed: correct(100, *(set(range(30)) - set(range(5 * seed, 5 * seed + 5))))
    for seed in seeds
  }
  means = [
    {seed: np.mean(values) for seed, values in of.items()}
    for of in (method, base)
  ]
  found = paired_difference(*means, (method, base))
  assert found.mean == pytest.approx(0.05)
  # By hand: the variance over examples of the mean over seeds, and that of
  # seeds drawn three times, which changes how often an example counts.
  generator = np.random.default_rng(0)
  differences = np.subtract(*(list(of.values()) for of in (method, base)))
  resampled = [
    differences[generator.integers(3, size=3)][
      :, generator.integers(100, size=100)
    ].mean()
    for _ in range(4000)
  ]
  low, high = np.quantile(resampled, (0.025, 0.975))
  assert found.interval == pytest.approx((low, high), abs=0.004)
  assert found.significant


def test_equal_examples_are_no_difference():
  values = correct(10, 1)
  found = of_examples(values, values)
  assert (found.p_value, found.interval) == (1.0, None)
  assert 'same values' in found.reason
  assert not found.significant


@pytest.mark.parametrize(
  'examples',
  [
    ({}, {0: [1.0]}),
    ({0: [1.0, 0.0]}, {0: [1.0]}),
    ({0: [math.nan]}, {0: [1.0]}),
  ],
)
def test_without_paired_examples_there_is_no_test(examples):
  found = paired_difference({0: 0.9}, {0: 0.8}, examples)
  assert (found.p_value, found.interval) == (None, None)
  assert 'one seed' in found.reason
