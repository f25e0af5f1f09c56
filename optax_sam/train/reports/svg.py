"""SVG plots that use the colours of their page."""

import dataclasses
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# A plot is drawn once for light and dark pages: these placeholder colours are
# replaced by CSS variables.
INK, MUTED, GRID, PANEL = '#010201', '#010202', '#010203', '#010204'
_NAMED = {'01': 'ink', '02': 'muted', '03': 'grid', '04': 'panel'}
_FIRST_HUE = 0x10
HUES = 6
MARKERS = ('s', 'o', '^', 'D', 'v', 'P', 'X', '<', '>', 'p', 'h', '*')
# An axis is logarithmic if its values span more than this factor.
LOGARITHMIC = 8
# Axes overflow near the largest float.
LARGEST = 1e30
WIDTH = 5.6  # inches of 72 units: about a phone, so text stays legible

_RC = {
  'axes.edgecolor': MUTED,
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.labelcolor': INK,
  'axes.labelsize': 11,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.unicode_minus': True,
  'figure.facecolor': 'none',
  'font.size': 11,
  'grid.color': GRID,
  'grid.linewidth': 0.8,
  'legend.frameon': False,
  'legend.fontsize': 10.5,
  'legend.labelcolor': INK,
  'lines.linewidth': 1.6,
  'savefig.facecolor': 'none',
  'svg.fonttype': 'none',
  'text.color': INK,
  'text.parse_math': False,  # a name may hold a dollar sign
  'xtick.color': MUTED,
  'xtick.labelcolor': INK,
  'ytick.color': MUTED,
  'ytick.labelcolor': INK,
}


@dataclasses.dataclass(frozen=True)
class Style:
  """The style of a method in every plot.

  Attributes:
    color: Placeholder colour of the CSS variable.
    variable: Name of the CSS variable.
    marker: Marker, different for each method.
    line: Line style; a dashed line marks the second round of hues.
  """

  color: str
  variable: str
  marker: str
  line: Literal['-', '--']


def method_styles(methods: Sequence[str], base: str) -> dict[str, Style]:
  """Gives each method a colour, a marker and a line style.

  The base optimizer has the colour of the text. The others cycle through hues
  that colour-blind readers can distinguish.

  Args:
    methods: The methods, base optimizer first.
    base: Name of the base optimizer.

  Returns:
    The style by method.
  """
  styles = {}
  others = 0
  for name in methods:
    if name == base:
      styles[name] = Style(INK, 'ink', MARKERS[0], '-')
      continue
    hue = others % HUES
    styles[name] = Style(
      color=f'#0102{_FIRST_HUE + hue:02x}',
      variable=f'hue-{hue}',
      marker=MARKERS[1 + others % (len(MARKERS) - 1)],
      line='-' if others // HUES % 2 == 0 else '--',
    )
    others += 1
  return styles


@contextmanager
def page_style() -> Iterator[None]:
  """Context in which plots have the style of the page."""
  import matplotlib as mpl

  with mpl.rc_context(_RC):
    yield


def new_figure(height: float) -> tuple['Figure', 'Axes']:
  """Returns an empty figure with a height in inches."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(WIDTH, height), dpi=72, layout='constrained')
  return figure, figure.subplots()


def add_legend(figure: 'Figure', styles: dict[str, Style]) -> None:
  """Adds the legend of all methods below a plot."""
  from matplotlib.lines import Line2D

  handles: list[Any] = [
    Line2D([], [], color=style.color, marker=style.marker, linestyle=style.line)
    for style in styles.values()
  ]
  widest = max(map(len, styles))
  fitting = max(1, int(63 / (widest + 6)))
  lines = math.ceil(len(styles) / fitting)
  columns = math.ceil(len(styles) / lines)
  figure.set_figheight(figure.get_figheight() + 0.25 * lines)
  figure.legend(
    handles, list(styles), loc='outside lower center', ncols=columns
  )


def is_drawable(value: float) -> bool:
  """Whether a value is finite and not too large for an axis."""
  return abs(value) <= LARGEST


def scale(axes: 'Axes', direction: str, values: Sequence[float]) -> bool:
  """Makes an axis logarithmic if its values span a wide range.

  Args:
    axes: The axes.
    direction: 'x' or 'y'.
    values: The values along this axis.

  Returns:
    Whether the axis is logarithmic.
  """
  from matplotlib.ticker import LogLocator, NullLocator

  smallest, largest = min(values), max(values)
  if smallest <= 0 or largest < LOGARITHMIC * smallest:
    return False
  axes.set(**{f'{direction}scale': 'log'})
  axis = axes.xaxis if direction == 'x' else axes.yaxis
  wide = largest > 1000 * smallest
  axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(lambda value, _: f'{value:g}')
  return True


def to_svg(figure: 'Figure', name: str) -> str:
  """Returns a figure as an inline SVG element.

  Args:
    figure: The figure.
    name: Prefix of all identifiers, unique within a page.

  Returns:
    The SVG element, with CSS variables as colours.
  """
  import matplotlib as mpl

  buffer = io.StringIO()
  nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  with mpl.rc_context({'svg.hashsalt': name}):
    figure.savefig(buffer, format='svg', metadata=nothing)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  head, body = text.split('>', 1)
  # The page sets the size, and HTML needs no namespaces.
  box = re.findall(r'viewBox="[^"]*"', head)[0]
  body = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', body)
  return f'<svg {box}>' + re.sub(r'#0102([0-9a-f]{2})', _variable, body)


def marker_svg(style: Style) -> str:
  """Returns a method's marker as a small SVG element, for tables."""
  from matplotlib.markers import MarkerStyle

  marker = MarkerStyle(style.marker)
  path = marker.get_path().transformed(marker.get_transform())
  outline = np.asarray(path.to_polygons()[0], dtype=float)
  # Matplotlib's markers have a size of about 1, with y upwards.
  corners = ' '.join(f'{6 + 10 * x:.1f},{6 - 10 * y:.1f}' for x, y in outline)
  return (
    '<svg class="marker" viewBox="-1 -1 14 14" aria-hidden="true">'
    f'<polygon points="{corners}" fill="var(--{style.variable})"/></svg>'
  )


def _variable(match: re.Match[str]) -> str:
  code = match[1]
  name = _NAMED.get(code) or f'hue-{int(code, 16) - _FIRST_HUE}'
  return f'var(--{name})'
