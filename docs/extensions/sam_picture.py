"""The picture of 'How SAM works': one step, and the loss that SAM lowers.

It is an SVG inside of the page, so lines and labels have the colours of the
page's light or dark theme: see `site.css`.
"""

from collections.abc import Callable

import numpy as np

_WIDTH, _HEIGHT = 360, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 16, 344, 34, 226


def _bowl(w: np.ndarray) -> np.ndarray:
  return 0.16 + 0.5 * w**2


def _two_minima(w: np.ndarray) -> np.ndarray:
  sharp = 0.62 * np.exp(-(((w + 1.1) / 0.2) ** 2))
  flat = 0.55 * np.exp(-(((w - 0.75) / 0.75) ** 2))
  return 0.78 - sharp - flat + 0.05 * w**2


def _largest_nearby(w: np.ndarray, rho: float) -> np.ndarray:
  steps = np.linspace(-rho, rho, 81)
  return _two_minima(w[:, None] + steps).max(axis=1)


class _Axes:
  """From coordinates of the loss to those of the picture."""

  def __init__(self, low: float, high: float, top: float) -> None:
    self._low, self._high, self._top = low, high, top

  def point(self, w: float, loss: float) -> tuple[float, float]:
    part = (w - self._low) / (self._high - self._low)
    x = _LEFT + part * (_RIGHT - _LEFT)
    y = _BOTTOM - loss / self._top * (_BOTTOM - _TOP)
    return round(float(x), 1), round(float(y), 1)

  def curve(self, loss: Callable[..., np.ndarray], kind: str) -> str:
    w = np.linspace(self._low, self._high, 161)
    points = [self.point(*pair) for pair in zip(w, loss(w), strict=True)]
    path = ' '.join(f'{x},{y}' for x, y in points if y > _TOP - 8)
    return f'<polyline class="{kind}" points="{path}"/>'

  def line(self, start: tuple, end: tuple, kind: str, head: str = '') -> str:
    (x1, y1), (x2, y2) = self.point(*start), self.point(*end)
    ends = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
    return f'<line class="{kind}" {ends}{head}/>'

  def arrow(self, start: tuple, end: tuple, kind: str) -> str:
    return self.line(start, end, kind, f' marker-end="url(#{kind})"')

  def dot(self, w: float, loss: float, kind: str) -> str:
    x, y = self.point(w, loss)
    return f'<circle class="{kind} dot" cx="{x}" cy="{y}" r="4.5"/>'

  def text(
    self,
    w: float,
    loss: float,
    words: str,
    kind: str = '',
    anchor: str = 'middle',
  ) -> str:
    x, y = self.point(w, loss)
    place = f'x="{x}" y="{y}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{words}</text>'


def _frame(title: str, parts: list[str], arrows: tuple[str, ...] = ()) -> str:
  axis = f'<path class="axis" d="M{_LEFT} {_TOP - 8}V{_BOTTOM}H{_RIGHT}"/>'
  heading = f'<text class="title" x="{_LEFT}" y="16">{title}</text>'
  weights = (
    f'<text x="{_RIGHT}" y="{_BOTTOM + 18}" text-anchor="end">weights</text>'
  )
  markers = ''.join(
    f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
    f'markerHeight="6" orient="auto"><path class="{kind} dot" '
    f'd="M0 0L8 4L0 8Z"/></marker>'
    for kind in arrows
  )
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
    f'<defs>{markers}</defs>{axis}{heading}{weights}{"".join(parts)}</svg>'
  )


def _one_step() -> str:
  axes = _Axes(-2.4, 1.2, 2.6)
  w, rho, rate = -1.2, 0.7, 0.55
  ascended = w - rho
  slope = ascended  # of the bowl there
  after = w - rate * slope
  here, there = float(_bowl(w)), float(_bowl(ascended))
  tangent = [(ascended + d, there + slope * d) for d in (-0.28, 0.4)]
  x, loss = tangent[0][0] + 0.14, tangent[0][1]
  return _frame(
    'One step',
    [
      axes.curve(_bowl, 'loss'),
      axes.line(*tangent, 'descent tangent'),
      axes.arrow((w, here), (ascended + 0.05, there - 0.09), 'ascent'),
      axes.arrow((w, here), (after, here), 'descent'),
      axes.dot(w, here, 'base'),
      axes.dot(ascended, there, 'ascent'),
      axes.dot(after, float(_bowl(after)), 'descent'),
      axes.text(w - 0.06, here - 0.24, 'w', 'base'),
      axes.text(
        w - 0.12,
        here + 0.4,
        '1. ascent step of length \N{GREEK SMALL LETTER RHO}',
        'ascent',
        'start',
      ),
      axes.text(x, loss - 0.08, '2. gradient there', 'descent', 'start'),
      axes.text(w + 0.42, here + 0.1, '3. step from w', 'descent', 'start'),
    ],
    ('ascent', 'descent'),
  )


def _objective() -> str:
  axes = _Axes(-1.9, 2.3, 1.0)
  rho = 0.22
  grid = np.linspace(-1.9, 2.3, 2001)
  largest = _largest_nearby(grid, rho)
  best = float(grid[largest.argmin()])
  sharp = float(grid[np.where(grid < -0.6, _two_minima(grid), 9).argmin()])
  return _frame(
    'What it lowers',
    [
      axes.curve(lambda w: _largest_nearby(w, rho), 'descent dashed'),
      axes.curve(_two_minima, 'loss'),
      axes.dot(sharp, float(_two_minima(np.array(sharp))), 'base'),
      axes.dot(best, float(_two_minima(np.array(best))), 'descent'),
      axes.text(sharp, 0.02, 'sharp', 'base'),
      axes.text(best, 0.1, 'flat', 'descent'),
      axes.text(
        -0.7,
        0.86,
        'largest loss within \N{GREEK SMALL LETTER RHO}',
        'descent',
        'start',
      ),
      axes.text(1.75, 0.45, 'loss', 'base', 'start'),
    ],
  )


def figure() -> str:
  """Returns the picture as a part of a page."""
  return f'<figure class="sam-picture">{_one_step()}{_objective()}</figure>'
