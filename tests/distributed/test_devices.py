from tests.distributed import processes


def test_on_eight_devices():
  processes.pass_on_eight_devices(
    'tests/distributed/eight_devices.py',
    'tests/distributed/sharded_leaves.py',
    at_least=105,
  )
