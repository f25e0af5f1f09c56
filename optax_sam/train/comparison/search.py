"""Search over a grid of powers that grows towards the best."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

# A point has one exponent for each setting: 0 is the setting's start.
Point = tuple[float, ...]
# Higher is better; the second number decides between equal first ones.
Score = tuple[float, float]

# Distances to the best point so far at which new points are tried, in order.
_DISTANCES = (1.0, 0.5, 2.0, 3.0)
_LARGEST_EXPONENT = 20


def search(
  measure: Callable[[Point], Score],
  axes: int,
  trials: int,
  is_allowed: Callable[[Point], bool] = lambda _: True,
) -> tuple[Point, Score, list[Point]]:
  """Searches for the best point with a fixed number of complete runs.

  Half of the points are a grid around the start, the others are next to the
  best one so far. So the grid grows where the best point is at its edge, and
  gets finer where it is not. There are no shorter runs: they favour other
  settings, such as large learning rates if labels are wrong.

  Returns:
    The best point, its score, and all points.
  """
  scores: dict[Point, Score] = {}

  def run(point: Point) -> None:
    score = measure(point)
    is_finite = math.isfinite(score[0])
    scores[point] = score if is_finite else (-math.inf, -sum(point))

  origin = (0.0,) * axes
  distances = range(1, _LARGEST_EXPONENT + 1)
  grid = filter(is_allowed, (origin, *_moved(origin, distances)))
  for point in itertools.islice(grid, math.ceil(trials / 2)):
    run(point)
  while len(scores) < trials:
    near = _moved(max(scores, key=scores.__getitem__), _DISTANCES)
    allowed = (x for x in near if x not in scores and is_allowed(x))
    point = next(allowed, None)
    if point is None:
      break
    run(point)
  best = max(scores, key=scores.__getitem__)
  return best, scores[best], list(scores)


def _moved(point: Point, distances: Iterable[float]) -> Iterator[Point]:
  """Yields points along the axes, in the order of the distances."""
  for distance in distances:
    for axis, value in enumerate(point):
      for moved in (value + distance, value - distance):
        if abs(moved) <= _LARGEST_EXPONENT:
          yield (*point[:axis], moved, *point[axis + 1 :])
