import csv
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
# Cheap compilation, because nothing is run.
FLAGS = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)


def _measure(directory):
  subprocess.run(
    [
      *(sys.executable, '-m', 'benchmarks.weak_scaling'),
      *('--devices', '2', '4', '--model', 'mlp', '--output', str(directory)),
      *('--rows', 'sam', 'shard_map/sgd', 'shard_map/sam'),
      'shard_map/sam, local ascent',
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': FLAGS},
    check=True,
    capture_output=True,
    timeout=300,
  )
  with (directory / 'weak_scaling.csv').open(newline='') as file:
    found = list(csv.DictReader(file))
  return {(row.pop('row'), int(row.pop('devices'))): row for row in found}


def test_the_collectives_of_a_step_do_not_grow_with_devices(tmp_path):
  rows = _measure(tmp_path)
  assert (tmp_path / 'weak_scaling.md').exists()
  for row in ('sam', 'shard_map/sam, local ascent'):
    assert rows[row, 2] == rows[row, 4]
    assert float(rows[row, 4]['flops']) > 0
    assert int(rows[row, 4]['collective_bytes']) > 0

  def collectives(row):
    return int(rows[f'shard_map/{row}', 4]['collectives'])

  assert collectives('sam, local ascent') == collectives('sgd')
  assert collectives('sam') == collectives('sgd') + 1
