"""Tables and picture of the speed benchmark, without measurements."""

import itertools

from matplotlib import text as mtext
from matplotlib.backends import backend_agg

from benchmarks import speed_picture, speed_table, speed_targets


def entry(problem, row, group='every step', wall=2.0, **given):
  ratios = {'wall': wall, 'low': wall, 'high': wall}
  return speed_table.Entry(
    problem=problem, row=row, group=group, milliseconds=1.0, **ratios, **given
  )


def test_a_row_that_the_first_network_lacks_is_in_its_group():
  entries = [
    entry('small', 'SGD', 'baselines'),
    entry('small', 'sam'),
    entry('small', 'k_sam', 'some examples'),
    entry('small', 'SGD', 'PyTorch'),
    entry('large', 'late'),
    entry('large', 'sam'),
  ]
  names = [
    ('baselines', 'SGD'),
    ('every step', 'late'),
    ('every step', 'sam'),
    ('some examples', 'k_sam'),
  ]
  text = speed_table.overview(entries, names, ['small', 'large'])
  found = [
    line.strip('# ') if line.startswith('#') else line.split(' | ')[0][2:]
    for line in text.splitlines()
    if line and not line.startswith(('| step', '|---'))
  ]
  assert found == [
    'Baselines',
    'SGD',
    'Every step',
    '`late`',
    '`sam`',
    'Some examples',
    '`k_sam`',
    'PyTorch',
    'SGD',
  ]


def test_a_network_without_the_row_has_an_empty_cell():
  entries = [
    entry('small', 'sam', gradients=2.0),
    entry('large', 'sam', wall=1.5, gradients=2.0),
    entry('large', 'late', fraction=0.5),
  ]
  text = speed_table.overview(entries, [], ['small', 'large'])
  assert '| `sam` | 2.00 | 2.00 | 1.50 |' in text
  assert '| `late` | 1.50 |  | 2.00 |' in text


def test_a_missed_target_is_bold():
  entries = [
    entry('conv', 'ae_sam, skipped', wall=1.05),
    entry('conv', 'sam', wall=1.8, gradients=2.0, counterpart='SAM'),
    entry('conv', 'SAM', 'PyTorch', wall=2.2, gradients=2.0),
    entry('dense', 'ae_sam, skipped', wall=1.05),
    entry('dense', 'SAM by hand', 'baselines', wall=2.0),
    entry('dense', 'sam', wall=2.1, gradients=2.0, counterpart='SAM'),
    entry('dense', 'SAM', 'PyTorch', wall=2.0, gradients=2.0),
  ]
  text = speed_targets.table(entries)
  assert '| number | target | conv | dense |' in text
  skipped = '| `ae_sam`, skipped: time | 1.03 (conv: 1.08) | 1.05 | **1.05** |'
  assert skipped in text
  # 2.1 / 2.0, and no such row on the conv network.
  by_hand = '| `sam`: time relative to SAM by hand | 1.03 |  | **1.05** |'
  assert by_hand in text
  pytorch = '| `sam`: time per gradient relative to SAM in PyTorch '
  assert f'{pytorch}| 1.00 | 0.82 | **1.05** |' in text
  # Their operations are not known.
  assert '| `sam`: operations | 2.01 |  |  |' in text


def test_the_picture_has_one_point_for_each_method():
  entries = [
    entry('small', 'SGD', 'baselines', wall=1.0),
    entry('small', 'look_sam', wall=1.25, gradients=1.2),
    entry('small', 'look_sam, full', gradients=2.0),
    entry('small', 'k_sam, a third each', wall=1.1, gradients=1.0),
    entry('large', 'look_sam', wall=1.75, gradients=1.2),
    entry('large', 'SAM', 'PyTorch, pytorch_optimizer', gradients=2.0),
  ]
  assert speed_picture.points(entries) == [
    speed_picture.Point('look_sam', 'optax_sam', 1.2, 1.5),
    speed_picture.Point('k_sam', 'optax_sam', 1.0, 1.1),
    speed_picture.Point('SAM', 'pytorch_optimizer', 2.0, 2.0),
  ]


def test_labels_of_the_picture_do_not_overlap():
  """This also holds if all points are at the same place."""
  same = [
    speed_picture.Point(f'method_{number}', 'optax_sam', 2.0, 2.0)
    for number in range(30)
  ]
  drawing = speed_picture.picture(same)
  canvas = backend_agg.FigureCanvasAgg(drawing)
  canvas.draw()
  boxes = [
    text_box.extents
    for label in drawing.axes[0].texts
    for text_box in [mtext.Text.get_window_extent(label, canvas.get_renderer())]
  ]
  assert len(boxes) == 30
  for one, other in itertools.combinations(boxes, 2):
    assert not speed_picture.overlap(one, other)
