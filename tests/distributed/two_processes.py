"""One of several processes that train every method together.

Called as `two_processes PORT NUMBER INDEX FILE`; leaves in the file what its
devices hold in the end.
"""

import itertools
import pathlib
import pickle
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.distributed import problem, ways

# These go all ways, one method of each kind. The others go the way on which
# each device ascends by itself, as is the default, and the one on which all of
# them ascend together and no device has all weights: next to all of the time
# goes into compiling.
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

  if name in ALL_WAYS:
    by_axis = itertools.product(ways.OVER_AXIS, problem.settings(name))
    by_placement = ways.PLACEMENTS
  else:
    by_axis, by_placement = [('shard_map', False)], ['fsdp']
  return {case: over_axis(*case) for case in by_axis} | {
    (placement, None): under_jit(placement) for placement in by_placement
  }


def main(port, number, index, file):
  jax.distributed.initialize(f'127.0.0.1:{port}', int(number), int(index))
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    found = {name: results(name) for name in problem.METHODS}
  pathlib.Path(file).write_bytes(pickle.dumps(found))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
