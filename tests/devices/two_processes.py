"""A process that trains methods together with other processes.

Called as `two_processes PORT NUMBER INDEX FILE`; writes the final arrays of its
devices to the file.
"""

import pathlib
import pickle
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.contracts.table import REPRESENTATIVES
from tests.devices import programs

# These run in all three ways over an axis and with sharded arrays, the others
# in one way of each, because compilation takes nearly all of the time.
ALL_WAYS = ('friendly_sam', 'ae_look_sam', 'esam')
WAYS = ('shard_map', 'shard_map_unchecked')
# All other methods run on eight devices of one process.
NAMES = [x for x in programs.OF_METHODS if x in {*REPRESENTATIVES, *ALL_WAYS}]


def results(name):
  """Returns the arrays of each device of this process, by transformation."""
  ways = WAYS if name in ALL_WAYS else WAYS[:1]
  found = {way: programs.over_axis(name, way).train() for way in ways}
  placements = programs.PLACEMENTS if name in ALL_WAYS else ('fsdp',)
  for placement in placements:
    trained = programs.under_jit(name, placement)
    whole = multihost_utils.process_allgather(trained.params, tiled=True)
    params = jax.tree.map(np.asarray, whole)
    found[placement] = [programs.Trained(params, None, trained.ascended)]
  return found


def main(port, number, index, file):
  jax.distributed.initialize(f'127.0.0.1:{port}', int(number), int(index))
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    found = {name: results(name) for name in NAMES}
  pathlib.Path(file).write_bytes(pickle.dumps(found))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
