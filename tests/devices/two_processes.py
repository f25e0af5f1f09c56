"""One of several processes that train methods together.

Called as `two_processes PORT NUMBER INDEX FILE`; writes to the file what its
devices hold in the end.
"""

import pathlib
import pickle
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.devices import programs

# Three ways over an axis and sharded arrays for one method of each kind; the
# others go one way of each: next to all of the time goes into compiling.
ALL_WAYS = ('friendly_sam', 'ae_look_sam', 'esam')
WAYS = ('shard_map', 'shard_map_unchecked')


def results(name):
  """Returns what each device of this process holds, by the way it trained."""
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
    found = {name: results(name) for name in programs.OF_METHODS}
  pathlib.Path(file).write_bytes(pickle.dumps(found))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
