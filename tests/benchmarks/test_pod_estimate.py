import pytest

from benchmarks.pod import estimate


def test_slices_add_the_time_of_the_network():
  assumed = estimate.Assumptions(
    utilization=0.5, hop_seconds=1e-6, network_seconds=1e-5
  )
  chip = estimate.Chip('made', 1e12, 1e9, 2, 16, 1e8, 'nowhere')
  work = estimate.Work(flops=1e9, collectives=3, bytes=1e6, sent_bytes=5e5)
  found = estimate.seconds(chip, 64, work, assumed)
  links, hops = 2 * 1e6 * 15 / 16 / 1e9, 3 * 8e-6
  sent, waits = 5e5 * 2 * 3 / 4 / 1e8, 3 * 1e-5
  assert found == pytest.approx(2e-3 + links + hops + sent + waits)
