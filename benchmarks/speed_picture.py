"""The picture of the speed table: time of a step against its gradients."""

import dataclasses
import itertools
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import figure
from matplotlib.backends import backend_agg

from benchmarks.speed_table import Entry

_METHODS, _PYTORCH = 'optax_sam', 'pytorch_optimizer'
_STYLES = {_METHODS: ('o', 'C0'), _PYTORCH: ('s', 'C3')}
_TICKS = (1, 1.5, 2, 3, 5, 7)
_DIRECTIONS = 24
_FARTHEST = 500  # pixels from a point to its label


@dataclasses.dataclass(frozen=True)
class Point:
  """One method: medians over the networks.

  Attributes:
    name: name of the method.
    kind: the library.
    gradients: cost of a step in gradients.
    time: time of a step relative to SGD.
  """

  name: str
  kind: str
  gradients: float
  time: float


def points(entries: Iterable[Entry]) -> list[Point]:
  """Returns a point for each method; of its variants, the default or first."""
  rows: dict[tuple[str, str], dict[str, list[Entry]]] = {}
  for entry in entries:
    if entry.row != 'SGD' and entry.group != 'baselines':
      is_torch = entry.group.startswith('PyTorch')
      method = _PYTORCH if is_torch else _METHODS, entry.row.partition(',')[0]
      rows.setdefault(method, {}).setdefault(entry.row, []).append(entry)
  found = []
  for (kind, name), variants in rows.items():
    chosen = variants.get(name) or next(iter(variants.values()))
    gradients = statistics.median(entry.expected for entry in chosen)
    time = statistics.median(entry.wall for entry in chosen)
    found.append(Point(name, kind, gradients, time))
  return found


def draw(path: pathlib.Path, entries: Iterable[Entry]) -> None:
  """Writes the picture; its background is white in every theme."""
  picture(points(entries)).savefig(path, format='png')


def picture(found: Sequence[Point]) -> figure.Figure:
  """Returns the picture, with a label at each point."""
  drawing = figure.Figure(figsize=(8.4, 8.0), dpi=130, layout='constrained')
  drawing.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
  axes = drawing.subplots()
  axes.set(xscale='log', yscale='log', xlim=(0.7, 8.5), ylim=(0.7, 8.5))
  axes.plot(
    axes.get_xlim(), axes.get_xlim(), color='0.7', linewidth=1, zorder=0
  )
  for kind, (marker, color) in _STYLES.items():
    own = [point for point in found if point.kind == kind]
    axes.plot(
      [point.gradients for point in own],
      [point.time for point in own],
      marker,
      color=color,
      label=kind,
      markersize=4.5,
    )
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(_TICKS, [f'{tick:g}' for tick in _TICKS])
    axis.set_ticks([], minor=True)
  axes.set_xlabel('gradients per step')
  axes.set_ylabel('time of a step relative to SGD')
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(loc='upper left', frameon=False)
  _label(drawing, axes, found)
  return drawing


def _label(drawing: Any, axes: Any, found: Sequence[Point]) -> None:
  """Puts each label at the nearest place where it covers nothing."""
  canvas = backend_agg.FigureCanvasAgg(drawing)
  canvas.draw()
  renderer = canvas.get_renderer()
  centers = [axes.transData.transform((p.gradients, p.time)) for p in found]
  taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centers]
  taken.append(axes.get_legend().get_window_extent(renderer).extents)
  inside = axes.get_window_extent(renderer).extents
  for point, center in zip(found, centers, strict=True):
    label = axes.annotate(
      point.name,
      (point.gradients, point.time),
      (0, 0),
      textcoords='offset pixels',
      color=_STYLES[point.kind][1] if point.kind == _PYTORCH else '0.15',
      fontsize=7.5,
      ha='center',
      va='center',
      arrowprops={
        'arrowstyle': '-',
        'color': '0.75',
        'linewidth': 0.5,
        'shrinkA': 0,
        'shrinkB': 2,
      },
    )
    size = label.get_window_extent(renderer)
    offset, box = _free_place(center, size.width, size.height, taken, inside)
    label.set_position(offset)
    taken.append(box)


def _free_place(
  center: Any, width: float, height: float, taken: list, inside: Any
) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
  """Returns the offset of a label and its box, in pixels."""
  for distance, number in itertools.product(
    range(8, _FARTHEST, 4), range(_DIRECTIONS)
  ):
    angle = 2 * math.pi * number / _DIRECTIONS
    across, up = math.cos(angle), math.sin(angle)
    offset = (
      across * (distance + width / 2),
      up * (distance + height / 2),
    )
    x, y = center[0] + offset[0], center[1] + offset[1]
    box = (
      x - width / 2 - 1,
      y - height / 2 - 1,
      x + width / 2 + 1,
      y + height / 2 + 1,
    )
    within = box[0] > inside[0] and box[1] > inside[1]
    within = within and box[2] < inside[2] and box[3] < inside[3]
    if within and not any(overlap(box, other) for other in taken):
      return offset, box
  msg = f'no free place for a label within {_FARTHEST} pixels of its point'
  raise ValueError(msg)


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
  """Returns whether two boxes (left, bottom, right, top) overlap."""
  return (
    one[0] < other[2]
    and other[0] < one[2]
    and one[1] < other[3]
    and other[1] < one[3]
  )
