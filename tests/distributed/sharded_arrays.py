"""Every method under `jit` on sharded arrays, on eight fake devices."""

import functools

import numpy as np
import pytest

from tests.contracts import comparisons
from tests.distributed import by_hand, problem, ways

TOLERANCE = 1e-5
ROUNDED = {'friendly_sam in bfloat16', 'look_sam in bfloat16'}

on_one_device = functools.cache(ways.on_one_device)


@pytest.mark.parametrize('name', problem.ROWS)
def test_one_device_equals_an_independent_computation(name):
  w, ascended = by_hand.train(name, 1, sync=False)
  found = on_one_device(name)
  tolerance = 1e-3 if name in ROUNDED else TOLERANCE
  np.testing.assert_allclose(
    by_hand.flat(found.params), w, rtol=0, atol=tolerance
  )
  np.testing.assert_array_equal(found.ascended, ascended)


@pytest.mark.parametrize(
  ('name', 'placement'),
  [
    (name, placement)
    for name in problem.ROWS
    for placement in ways.PLACEMENTS
    if name in problem.METHODS or placement == 'fsdp'
  ],
)
def test_sharded_arrays_give_what_one_device_does(name, placement):
  found, one = ways.under_jit(name, placement), on_one_device(name)
  comparisons.assert_close(found.params, one.params, TOLERANCE)
  np.testing.assert_array_equal(found.ascended, one.ascended)
