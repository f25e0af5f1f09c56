import dataclasses

import pytest

from benchmarks import pod_chips, pod_estimate, pod_table
from benchmarks.pod_estimate import Assumptions, Work

ASSUMED = Assumptions(
  utilization=0.5, hop_seconds=1e-6, network_seconds=1e-5, share=0.25
)
CHIP = pod_chips.Chip('made', 1e12, 1e9, 2, 16, 1e8, 'nowhere')
WORK = Work(flops=1e9, collectives=3, bytes=1e6)


def test_one_chip_only_computes():
  found = pod_estimate.seconds(CHIP, 1, WORK, ASSUMED)
  assert found == pytest.approx(1e9 / 0.5e12)


def test_a_slice_adds_links_and_hops():
  found = pod_estimate.seconds(CHIP, 4, WORK, ASSUMED)
  links, hops = 2 * 1e6 * 3 / 4 / 1e9, 3 * 4e-6
  assert found == pytest.approx(2e-3 + links + hops)


def test_slices_add_the_network():
  work = dataclasses.replace(WORK, sent_bytes=5e5)
  found = pod_estimate.seconds(CHIP, 64, work, ASSUMED)
  links, hops = 2 * 1e6 * 15 / 16 / 1e9, 3 * 8e-6
  sent, waits = 5e5 * 2 * 3 / 4 / 1e8, 3 * 1e-5
  assert found == pytest.approx(2e-3 + links + hops + sent + waits)


@pytest.mark.parametrize(('speed', 'sent'), [(None, 5e5), (1e8, None)])
def test_slices_of_unknown_network_are_refused(speed, sent):
  chip = dataclasses.replace(CHIP, network_bytes=speed)
  work = dataclasses.replace(WORK, sent_bytes=sent)
  with pytest.raises(ValueError, match='at most 16 of made, not 32'):
    pod_estimate.seconds(chip, 32, work, ASSUMED)


@pytest.mark.parametrize(
  ('axes', 'chips', 'shape'),
  [(2, 1, (1, 1)), (2, 32, (8, 4)), (2, 256, (16, 16)), (3, 64, (4, 4, 4))],
)
def test_the_torus_is_compact(axes, chips, shape):
  chip = dataclasses.replace(CHIP, axes=axes)
  assert chip.shape(chips) == shape


def _entry(row, flops, collectives, inside, kinds=''):
  return pod_table.Entry(
    topology=pod_estimate.SOURCE,
    chips=256,
    model='resnet50',
    row=row,
    optimization='O0',
    flops=flops,
    peak_bytes=0,
    collectives=collectives,
    collective_bytes=100 * collectives,
    kinds=kinds,
    collectives_inside=inside,
    collective_bytes_inside=100 * inside,
    conditionals=1,
    products=0,
    products_inside=0,
    loops=0,
    versions='',
    date='',
  )


def test_a_step_that_sometimes_ascends_is_averaged():
  rows = {'sgd': _entry('sgd', 10, 4, 0), 'ae_sam': _entry('ae_sam', 20, 8, 4)}
  name = 'AE-SAM, ascending at 25%'
  work = dict(pod_estimate.steps(rows, {}, 0.25))[name]
  assert work == Work(flops=12.5, collectives=5, bytes=500)
  sent = {
    'sgd': _entry('sgd', 10, 4, 0, kinds='send 3 (2.0 MB)'),
    'sam': _entry(
      'sam', 20, 8, 0, kinds='all-reduce 1 (9.0 MB); send 6 (4.0 MB)'
    ),
  }
  work = dict(pod_estimate.steps(rows, sent, 0.25))[name]
  assert work.sent_bytes == 2.5e6


def test_efficiency_and_ratio_are_of_the_base_optimizer():
  entries = [_entry('sgd', 1e12, 4, 0), _entry('sam', 2e12, 8, 0)]
  table = pod_estimate.estimates(entries, ASSUMED)
  found = {(e.chip, e.step, e.chips): e for e in table}
  one, many = (found['v4', 'SAM', chips] for chips in (1, 2048))
  assert (one.efficiency, one.relative) == (1, pytest.approx(2))
  assert many.efficiency == pytest.approx(one.seconds / many.seconds)
  base = found['v4', 'base optimizer', 2048]
  assert many.relative == pytest.approx(many.seconds / base.seconds)
  assert 'SAM' in pod_estimate.page(table, ASSUMED, 'nothing')


def test_a_step_for_one_slice_ends_there():
  table = pod_estimate.estimates([_entry('sgd', 1e12, 4, 0)], ASSUMED)
  assert max(e.chips for e in table if e.chip == 'v5e') == 256
  assert max(e.chips for e in table if e.chip == 'v4') == 2048
