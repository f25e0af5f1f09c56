import pytest

from benchmarks.pod import estimate


def test_slices_add_the_time_of_the_network():
  chip = estimate.Chip('made', 1e12, 1e9, 2, 16, 1e8, 'nowhere')
  work = estimate.Work(flops=1e9, collectives=3, bytes=1e6, sent_bytes=5e5)
  computed = 1e9 / (1e12 * estimate.UTILIZATION)
  links, hops = 2 * 1e6 * 15 / 16 / 1e9, 3 * 8 * estimate.HOP_SECONDS
  sent, waits = 5e5 * 2 * 3 / 4 / 1e8, 3 * estimate.NETWORK_SECONDS
  found = estimate.seconds(chip, 64, work)
  assert found == pytest.approx(computed + links + hops + sent + waits)
