"""Every method in two processes with two fake devices each."""

import functools
import pickle

import numpy as np
import pytest

from tests.contracts import comparisons
from tests.distributed import by_hand, problem, processes

DEVICES = 4
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """What both processes found, by method, way and `sync_ascent`."""
  directory = tmp_path_factory.mktemp('processes')
  files = [directory / f'{index}.pickle' for index in range(2)]
  processes.run_together(
    'tests.distributed.two_processes', [[str(x)] for x in files], devices=2
  )
  first, second = (pickle.loads(file.read_bytes()) for file in files)
  assert set(first) == set(second) == set(problem.METHODS)
  return {
    name: {way: first[name][way] + second[name][way] for way in first[name]}
    for name in first
  }


@functools.cache
def expected(name, devices, sync):
  return by_hand.train(name, devices, sync=sync)


@pytest.mark.parametrize('name', problem.METHODS)
def test_replicas_are_bit_equal_and_right(found, name):
  assert {('shard_map', False), ('fsdp', None)} <= set(found[name])
  for (way, sync), copies in found[name].items():
    under_jit = sync is None
    assert len(copies) == (2 if under_jit else DEVICES)
    for copy in copies[1:]:
      comparisons.assert_equal(copy, copies[0])
    w, ascended = expected(name, 1 if under_jit else DEVICES, bool(sync))
    np.testing.assert_allclose(
      by_hand.flat(copies[0].params), w, rtol=0, atol=TOLERANCE, err_msg=way
    )
    np.testing.assert_array_equal(copies[0].ascended, ascended)
