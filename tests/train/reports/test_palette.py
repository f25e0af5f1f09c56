"""Hues of the pages: all kinds of colour vision tell them apart."""

import itertools
import math
import pathlib
import re

import pytest

from optax_sam.train import reports
from optax_sam.train.reports.formats import HUES

CSS = (pathlib.Path(reports.__file__).parent / 'page.css').read_text('utf-8')
# Machado, Oliveira and Fernandes (2009), full severity, on linear RGB.
VISION = {
  'normal': ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
  'protanopia': (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
  ),
  'deuteranopia': (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
  ),
  'tritanopia': (
    (1.255528, -0.076749, -0.178779),
    (-0.078411, 0.930809, 0.147602),
    (0.004733, 0.691367, 0.303900),
  ),
}
TO_XYZ = (
  (0.4124564, 0.3575761, 0.1804375),
  (0.2126729, 0.7151522, 0.0721750),
  (0.0193339, 0.1191920, 0.9503041),
)


def times(matrix, vector):
  return [
    sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix
  ]


def linear(color):
  values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  return [
    x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in values
  ]


def lab(rgb):
  white = times(TO_XYZ, (1, 1, 1))
  ratios = [x / w for x, w in zip(times(TO_XYZ, rgb), white, strict=True)]
  x, y, z = (
    r ** (1 / 3) if r > (6 / 29) ** 3 else r * (29 / 6) ** 2 / 3 + 4 / 29
    for r in ratios
  )
  return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(one, two):
  """CIEDE2000 in the steps of Sharma, Wu and Dalal (2005)."""
  (l1, a1, b1), (l2, a2, b2) = one, two
  middle = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
  g = 0.5 * (1 - math.sqrt(middle**7 / (middle**7 + 25**7)))
  a1, a2 = (1 + g) * a1, (1 + g) * a2
  c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
  h1, h2 = (
    math.degrees(math.atan2(b, a)) % 360 for b, a in ((b1, a1), (b2, a2))
  )
  dh = 0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
  d_hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(dh) / 2)
  h = h1 + dh / 2 if c1 * c2 else h1 + h2
  lightness, c = (l1 + l2) / 2, (c1 + c2) / 2
  cosine = lambda degrees: math.cos(math.radians(degrees))
  t = 1 - 0.17 * cosine(h - 30) + 0.24 * cosine(2 * h)
  t += 0.32 * cosine(3 * h + 6) - 0.2 * cosine(4 * h - 63)
  square = (lightness - 50) ** 2
  sl = 1 + 0.015 * square / math.sqrt(20 + square)
  sc, sh = 1 + 0.045 * c, 1 + 0.015 * c * t
  turn = 60 * math.exp(-((((h % 360) - 275) / 25) ** 2))
  rt = -2 * math.sqrt(c**7 / (c**7 + 25**7)) * math.sin(math.radians(turn))
  x, y, z = (l2 - l1) / sl, (c2 - c1) / sc, d_hue / sh
  return math.sqrt(x * x + y * y + z * z + rt * y * z)


def variable(name, mode):
  found = re.search(rf'--{name}: light-dark\((#\w{{6}}), (#\w{{6}})\);', CSS)
  return found[1 if mode == 'light' else 2]


def contrast(one, two):
  low, high = sorted(times(TO_XYZ, linear(color))[1] for color in (one, two))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
  ('one', 'two', 'expected'),
  [  # pairs 1, 7, 13 and 25 of Sharma, Wu and Dalal (2005), table 1
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    (
      (60.2574, -34.0099, 36.2677),
      (60.4626, -34.1751, 39.4387),
      1.2644,
    ),
  ],
)
def test_the_difference_equals_published_values(one, two, expected):
  assert ciede2000(one, two) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('mode', ['light', 'dark'])
@pytest.mark.parametrize('vision', VISION)
def test_hues_are_told_apart(mode, vision):
  seen = {}
  for hue in range(HUES):
    color = variable(f'hue-{hue}', mode)
    rgb = times(VISION[vision], linear(color))
    seen[color] = lab([min(1, max(0, x)) for x in rgb])
  assert len(seen) == 8
  for one, two in itertools.combinations(seen, 2):
    assert ciede2000(seen[one], seen[two]) >= 15, (one, two)


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_hues_and_texts_have_contrast(mode):
  names = [f'hue-{hue}' for hue in range(HUES)]
  for name, least in [(x, 3) for x in names] + [
    ('ink', 7),
    ('muted', 4.5),
    ('link', 4.5),
  ]:
    for background in ('page', 'panel'):
      found = contrast(variable(name, mode), variable(background, mode))
      assert found >= least, (name, background)
  assert contrast(variable('alert', mode), variable('alert-panel', mode)) >= 4.5
