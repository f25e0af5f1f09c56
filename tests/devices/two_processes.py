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

# All train with sharded weights, whose state each process holds in part. These
# train in two other ways each, which together are all ways, because compilation
# takes nearly all of the time.
MORE_WAYS = {
  'friendly_sam': ('shard_map', 'explicit'),
  'ae_look_sam': ('shard_map_unchecked', 'data_model'),
  'esam': ('shard_map', 'data_model'),
}
# All other methods run on eight devices of one process.
NAMES = [x for x in programs.OF_METHODS if x in {*REPRESENTATIVES, *MORE_WAYS}]


def results(name):
  """Returns the arrays of each device of this process, by transformation."""
  found = {}
  for way in ('fsdp', *MORE_WAYS.get(name, ())):
    if way not in programs.PLACEMENTS:
      found[way] = programs.over_axis(name, way).train()
      continue
    trained = programs.under_jit(name, way)
    whole = multihost_utils.process_allgather(trained.params, tiled=True)
    params = jax.tree.map(np.asarray, whole)
    found[way] = [programs.Trained(params, None, trained.ascended)]
  return found


def main(port, number, index, file):
  jax.distributed.initialize(f'127.0.0.1:{port}', int(number), int(index))
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    found = {name: results(name) for name in NAMES}
  pathlib.Path(file).write_bytes(pickle.dumps(found))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
