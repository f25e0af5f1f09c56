"""Successive halving over a grid of powers that grows towards the best."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Found:
  """The result of a search: the best point of the last round."""

  best: Point
  score: Score
  tried: list[Point]
  at_edge: bool  # whether a point beyond all tried ones might be better


def search(
  measure: Callable[[Point, float], Score],
  axes: int,
  trials: int,
  is_allowed: Callable[[Point], bool] = lambda _: True,
) -> Found:
  """Searches for the best point with a fixed number of runs.

  The first round tries `trials` points in short runs: half of them in a grid
  around the start, the others next to the best one so far. So the grid grows
  where the best point is at its edge, and gets finer where it is not. Each
  later round repeats the better half in longer runs. Its last run is beyond the
  edge if the best point of the round is at the edge.
  """
  tried: list[Point] = []
  scores: dict[Point, Score] = {}

  def run(point: Point, length: float) -> None:
    if point not in tried:
      tried.append(point)
    score = measure(point, length)
    if not math.isfinite(score[0]):
      score = (-math.inf, -sum(point))
    scores[point] = score

  def best() -> Point:
    return max(scores, key=scores.__getitem__)

  def first_new(points: Iterable[Point]) -> Point | None:
    for point in points:
      small = max(map(abs, point)) <= _LARGEST_EXPONENT
      if point not in tried and small and is_allowed(point):
        return point
    return None

  origin = (0.0,) * axes
  distances = range(1, _LARGEST_EXPONENT + 1)
  grid = filter(is_allowed, (origin, *_moved(origin, distances)))
  for point in itertools.islice(grid, math.ceil(trials / 2)):
    run(point, LENGTHS[0])
  while len(scores) < trials:
    point = first_new(_moved(best(), _DISTANCES))
    if point is None:
      break
    run(point, LENGTHS[0])
  for number, length in enumerate(LENGTHS[1:], 1):
    # Python's sort is stable: of equal points the earlier one is first.
    order = sorted(scores, key=scores.__getitem__, reverse=True)
    order = order[: max(1, trials // 2**number)]
    scores.clear()
    for point in order[:-1]:
      run(point, length)
    last = first_new(_beyond(best(), tried)) if scores else None
    run(order[-1] if last is None else last, length)
  at_edge = first_new(_beyond(best(), tried)) is not None
  return Found(best(), scores[best()], tried, at_edge)


def _moved(point: Point, distances: Iterable[float]) -> Iterator[Point]:
  """Yields points along the axes, in the order of the distances."""
  for distance in distances:
    for axis, value in enumerate(point):
      for moved in (value + distance, value - distance):
        yield (*point[:axis], moved, *point[axis + 1 :])


def _beyond(point: Point, tried: list[Point]) -> Iterator[Point]:
  """Yields the next points beyond the edges at which a point is."""
  for number, moved in enumerate(_moved(point, [1.0])):
    axis, edge = number // 2, min if number % 2 else max
    if point[axis] == edge(other[axis] for other in tried):
      yield moved
