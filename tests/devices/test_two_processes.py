"""A method of each kind in two processes with two devices each."""

import pickle

import pytest

from tests.contracts import comparisons
from tests.devices import processes, programs, two_processes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('two processes')]


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """The results of both processes, by method and transformation."""
  directory = tmp_path_factory.mktemp('processes')
  files = [directory / f'{index}.pickle' for index in range(2)]
  processes.run_together(
    'tests.devices.two_processes', [[str(x)] for x in files], devices=2
  )
  first, second = (pickle.loads(file.read_bytes()) for file in files)
  assert set(first) == set(second) == set(two_processes.NAMES)
  return {
    name: {way: first[name][way] + second[name][way] for way in first[name]}
    for name in first
  }


@pytest.mark.parametrize('name', two_processes.NAMES)
def test_replicas_are_equal_and_follow_the_rule(found, name):
  assert 'fsdp' in found[name]
  for way, copies in found[name].items():
    devices = 1 if way in programs.PLACEMENTS else 4
    assert len(copies) == max(devices, 2)
    for copy in copies[1:]:
      comparisons.assert_equal(copy.params, copies[0].params)
    programs.assert_follows(name, copies[0], devices)
