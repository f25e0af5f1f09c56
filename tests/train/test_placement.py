"""Runs on several devices, which need a process of their own."""

import pytest

from optax_sam.train.distributed import sharding
from tests.distributed import processes


def test_on_eight_devices():
  processes.pass_on_eight_devices('tests/train/eight_devices.py', at_least=22)


def test_one_device_is_left_to_jax():
  for text in (None, 'data=1'):
    one = sharding.build(text, 7)
    assert one.replicated is None
    batch = {'labels': 7}
    assert one.batch(batch) is batch


def test_a_mesh_of_more_devices_than_there_are_is_one_line():
  with pytest.raises(ValueError, match='--mesh data=8 must be of all devices'):
    sharding.build('data=8', 8)
