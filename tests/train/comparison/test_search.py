import math

import pytest

from optax_sam.train.comparison.search import search


def peak(*best):
  """A score whose best exponents are known."""
  return lambda point: (-math.dist(point, best), 0.0)


@pytest.mark.parametrize('best', [0, 1, -1, 2, 0.5, 3, -3, 5, -4])
def test_the_best_exponent_is_found_in_and_outside_of_the_first_grid(best):
  found, score, tried = search(peak(best), axes=1, trials=8)
  assert found == (best,)
  assert score == (0, 0)
  assert len(tried) == 8


def test_diverged_points_are_worst_and_smaller_values_are_tried():
  def score(point):
    return (math.nan if point[0] > -3 else -abs(point[0] + 4)), 0.0

  assert search(score, axes=1, trials=8)[0] == (-4,)
  # If all diverge, the smallest one is returned.
  best, score, tried = search(lambda *_: (math.nan, 0.0), axes=1, trials=4)
  assert best == min(tried)
  assert score[0] == -math.inf


def test_the_loss_decides_between_equal_metrics():
  best, *_ = search(lambda p: (0.5, -abs(p[0] - 2)), axes=1, trials=8)
  assert best == (2,)


def test_several_settings_are_searched_together():
  assert search(peak(1, -2), axes=2, trials=16)[0] == (1, -2)


def test_points_that_are_not_allowed_are_not_tried():
  best, _, tried = search(
    peak(3), axes=1, trials=8, is_allowed=lambda p: p[0] in (0, 1, 2)
  )
  assert sorted(tried) == [(0,), (1,), (2,)]
  assert best == (2,)
