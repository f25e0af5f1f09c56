"""Where the arrays of a run are: on one device, or on all of them.

Under a mesh a step stays one program for the global batch: parameters and
states are replicated, batches are split by their first axis, and the compiler
puts the sums over devices where they are needed.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_sam.train.data import Batch

_AXIS = 'data'


class Placement:
  """Puts states and batches onto devices."""

  def __init__(self, mesh: Mesh | None = None) -> None:
    """Holds the mesh.

    Args:
      mesh: of one axis, `data`; None leaves everything to JAX, which uses its
        default device.
    """
    self.mesh = mesh

  @property
  def replicated(self) -> NamedSharding | None:
    """The sharding of everything but batches."""
    return None if self.mesh is None else NamedSharding(self.mesh, P())

  def state(self, tree: Any) -> Any:
    """Puts a copy of a state onto every device."""
    if self.mesh is None:
      return tree
    return jax.device_put(tree, self.replicated)

  def batch(self, batch: Batch) -> Batch:
    """Splits a batch, of which every process gives its own rows.

    One that the devices don't divide, as a whole test set, is put onto each.
    """
    if self.mesh is None:
      return batch
    rows = len(batch['labels']) * jax.process_count()
    if rows % self.mesh.size:
      return self.state(batch)
    split = NamedSharding(self.mesh, P(_AXIS))
    return {
      name: jax.make_array_from_process_local_data(split, values)
      for name, values in batch.items()
    }


def build(text: str | None, batch_size: int) -> Placement:
  """Returns the placement that `--mesh` asks for.

  Args:
    text: `data=8` or the like; None takes all devices if they divide the
      batch, otherwise one.
    batch_size: examples in a step.

  Raises:
    ValueError: if the mesh doesn't fit the devices or the batch, in one line.
  """
  count = jax.device_count()
  if text is None:
    if batch_size % count:
      count = 1
  else:
    name, _, size = text.partition('=')
    if name != _AXIS or not size.isdecimal():
      msg = f'--mesh {text!r} must read {_AXIS}=N, with N={count} devices here'
      raise ValueError(msg)
    if int(size) != count:
      msg = f'--mesh {text} must be of all devices: {_AXIS}={count}'
      raise ValueError(msg)
    if batch_size % count:
      msg = (
        f'--mesh {text}: --batch-size must be a multiple of {count}, '
        f'not {batch_size}'
      )
      raise ValueError(msg)
  if count == 1:
    return Placement()
  return Placement(Mesh(np.asarray(jax.devices()), (_AXIS,)))
