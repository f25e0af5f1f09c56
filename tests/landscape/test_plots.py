import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from optax_sam import landscape

mpl.use('agg')

POSITIONS = np.linspace(-1, 1, 11)


@pytest.fixture(autouse=True)
def _close():
  yield
  plt.close('all')


def test_lines_are_drawn_with_names():
  lines = {
    name: landscape.Line(POSITIONS, sharpness * POSITIONS**2)
    for name, sharpness in (('SGD', 4.0), ('SAM', 1.0))
  }
  axes = landscape.plot_lines(lines)
  for drawn, (name, line) in zip(axes.lines, lines.items(), strict=True):
    assert drawn.get_label() == name
    np.testing.assert_array_equal(drawn.get_ydata(), line.losses)
  assert [text.get_text() for text in axes.get_legend().texts] == list(lines)


def test_contours_agree_with_the_losses():
  positions = np.linspace(-1, 1, 101)
  losses = np.add.outer(positions**2, 9 * positions**2)
  axes = landscape.plot_plane(landscape.Plane(positions, losses))
  inner = axes.collections[0].get_paths()[2].vertices
  # Nine times the curvature along the second direction: a narrow ellipse.
  width, height = np.ptp(inner, axis=0)
  assert width == pytest.approx(3 * height, rel=0.05)
