"""One of several processes that train every method together.

Called as `two_processes PORT NUMBER INDEX FILE`; leaves in the file what its
devices hold in the end.
"""

import pathlib
import pickle
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.distributed import problem, ways

# The other ways, each by a method of another kind: next to all of the time goes
# into compiling.
ALL_WAYS = ('friendly_sam', 'ae_look_sam', 'esam')


def results(name):
  """Returns what each device of this process holds, by (way, sync_ascent)."""

  def over_axis(way, sync):
    tx = problem.over_axis(name, sync=sync)
    return ways.over_axis(tx, way, problem.batches())

  def under_jit(placement):
    trained = ways.under_jit(name, placement)
    whole = multihost_utils.process_allgather(
      (trained.params, trained.ascended), tiled=True
    )
    params, ascended = jax.tree.map(np.asarray, whole)
    return [ways.Trained(params, None, ascended)]

  others = name in ALL_WAYS
  by_axis = ways.OVER_AXIS if others else ('shard_map',)
  by_placement = ways.PLACEMENTS if others else ('data', 'fsdp')
  return {
    (way, sync): over_axis(way, sync)
    for way in by_axis
    for sync in problem.settings(name)
  } | {(placement, None): under_jit(placement) for placement in by_placement}


def main(port, number, index, file):
  jax.distributed.initialize(f'127.0.0.1:{port}', int(number), int(index))
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    found = {name: results(name) for name in problem.METHODS}
  pathlib.Path(file).write_bytes(pickle.dumps(found))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
