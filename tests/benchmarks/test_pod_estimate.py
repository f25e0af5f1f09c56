import dataclasses

import pytest

from benchmarks import pod_chips, pod_estimate
from benchmarks.pod_estimate import Assumptions, Work

ASSUMED = Assumptions(
  utilization=0.5, hop_seconds=1e-6, network_seconds=1e-5, ascent_fraction=0.25
)
CHIP = pod_chips.Chip('made', 1e12, 1e9, 2, 16, 1e8, 'nowhere')
WORK = Work(flops=1e9, collectives=3, bytes=1e6)


def test_slices_add_the_time_of_the_network():
  work = dataclasses.replace(WORK, sent_bytes=5e5)
  found = pod_estimate.seconds(CHIP, 64, work, ASSUMED)
  links, hops = 2 * 1e6 * 15 / 16 / 1e9, 3 * 8e-6
  sent, waits = 5e5 * 2 * 3 / 4 / 1e8, 3 * 1e-5
  assert found == pytest.approx(2e-3 + links + hops + sent + waits)
