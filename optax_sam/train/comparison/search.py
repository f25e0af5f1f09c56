"""Successive halving over a grid of powers that grows towards the best."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

# A point has one exponent for each setting: 0 is the setting's start.
Point = tuple[float, ...]
# Higher is better; the second number decides between equal first ones.
Score = tuple[float, float]

# Length of the runs of each round, as a fraction of a complete run. Each round
# has half as many runs as the one before.
LENGTHS = (1 / 4, 1 / 2, 1)
# Distances to the best point so far at which new points are tried, in order.
_DISTANCES = (1.0, 0.5, 2.0, 3.0)
_LARGEST_EXPONENT = 20


def search(
  measure: Callable[[Point, float], Score],
  axes: int,
  trials: int,
  is_allowed: Callable[[Point], bool] = lambda _: True,
) -> tuple[Point, Score, list[Point]]:
  """Searches for the best point with a fixed number of runs.

  The first round tries `trials` points in short runs: half of them in a grid
  around the start, the others next to the best one so far. So the grid grows
  where the best point is at its edge, and gets finer where it is not. Each
  later round repeats the better half in longer runs.

  Returns:
    The best point of the last round, its score, and all points.
  """
  scores: dict[Point, Score] = {}

  def run(point: Point, length: float) -> None:
    score = measure(point, length)
    is_finite = math.isfinite(score[0])
    scores[point] = score if is_finite else (-math.inf, -sum(point))

  origin = (0.0,) * axes
  distances = range(1, _LARGEST_EXPONENT + 1)
  grid = filter(is_allowed, (origin, *_moved(origin, distances)))
  for point in itertools.islice(grid, math.ceil(trials / 2)):
    run(point, LENGTHS[0])
  while len(scores) < trials:
    near = _moved(max(scores, key=scores.__getitem__), _DISTANCES)
    allowed = (x for x in near if x not in scores and is_allowed(x))
    point = next(allowed, None)
    if point is None:
      break
    run(point, LENGTHS[0])
  tried = list(scores)
  for number, length in enumerate(LENGTHS[1:], 1):
    # Python's sort is stable: of equal points the earlier one is first.
    order = sorted(scores, key=scores.__getitem__, reverse=True)
    scores.clear()
    for point in order[: max(1, trials // 2**number)]:
      run(point, length)
  best = max(scores, key=scores.__getitem__)
  return best, scores[best], tried


def _moved(point: Point, distances: Iterable[float]) -> Iterator[Point]:
  """Yields points along the axes, in the order of the distances."""
  for distance in distances:
    for axis, value in enumerate(point):
      for moved in (value + distance, value - distance):
        if abs(moved) <= _LARGEST_EXPONENT:
          yield (*point[:axis], moved, *point[axis + 1 :])
