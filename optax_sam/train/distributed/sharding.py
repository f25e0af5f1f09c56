"""Placement of the arrays of a run on one device or on a mesh.

Under a mesh a step is one compiled function of the global batch. Its rows are
split over all devices; parameters and states are replicated, or split over the
axis `fsdp`. The compiler inserts the collectives.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_sam
from optax_sam.train.config import checks
from optax_sam.train.data.datasets import Batch

_FSDP = 'fsdp'
# Smaller arrays cost less to replicate than to gather.
_LEAST_TO_SPLIT = 2**10


class Placement:
  """Puts states and batches onto devices.

  The mesh has the axes `data`, `fsdp` or both. Without one everything is on
  JAX's default device, and all shardings are None.
  """

  def __init__(self, mesh: Mesh | None = None) -> None:
    self.mesh = mesh
    # Shardings of replicated arrays, and of batches split over all devices.
    self.replicated = self.rows = None
    if mesh is not None:
      self.replicated = NamedSharding(mesh, P())
      self.rows = NamedSharding(mesh, P(mesh.axis_names))

  def shardings(self, abstract_state: Any) -> Any:
    """Returns the shardings of the arrays of a state, None without a mesh.

    An array is split along its largest axis that the size of `fsdp` divides, so
    momentum is split like its parameter. It is replicated if there is none, or
    if it is small. SAF's table is split by example over all devices.
    """
    is_table = lambda node: isinstance(node, optax_sam.SafState)

    def of(node: Any) -> Any:
      split = self._by_row if is_table(node) else self._by_axis
      return jax.tree.map(lambda leaf: split(leaf.shape), node)

    return jax.tree.map(of, abstract_state, is_leaf=is_table)

  def state(self, tree: Any) -> Any:
    """Places a state, which is the same on every process, on the devices."""
    if self.mesh is None:
      return tree
    return jax.tree.map(_put, tree, self.shardings(tree))

  def made(self, make: Callable[..., Any], *args: Any) -> Any:
    """Returns a part of a state, created with its final sharding.

    Each new object `make` is compiled anew; the arguments are on the devices.
    """
    if self.mesh is None:
      return jax.jit(make)(*args)
    shardings = self.shardings(jax.eval_shape(make, *args))
    return jax.jit(make, out_shardings=shardings)(*args)

  def batch(self, batch: Batch) -> Batch:
    """Splits a batch of which every process passes its own rows, in order."""
    if self.mesh is None:
      return batch
    return {
      name: jax.make_array_from_process_local_data(self.rows, values)
      for name, values in batch.items()
    }

  def whole(self, batch: Batch) -> Batch:
    """Splits a batch of which every process passes all rows.

    A batch that the devices don't divide, such as a test set, is replicated.
    """
    if self.mesh is None:
      return batch
    sharding = self._by_row((len(batch['labels']),))
    return jax.tree.map(lambda values: _put(values, sharding), batch)

  def _by_row(self, shape: tuple[int, ...]) -> NamedSharding | None:
    if self.mesh is None or shape[0] % self.mesh.size:
      return self.replicated
    return self.rows

  def _by_axis(self, shape: tuple[int, ...]) -> NamedSharding | None:
    if self.mesh is None or _FSDP not in self.mesh.shape:
      return self.replicated
    size = self.mesh.shape[_FSDP]
    fitting = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not fitting or math.prod(shape) < _LEAST_TO_SPLIT:
      return self.replicated
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(self.mesh, P(*[None] * longest, _FSDP))


def build(text: str | None, batch_size: int) -> Placement:
  """Returns the placement for a value of `--mesh`, such as `data=4,fsdp=2`.

  None uses all devices if they divide the batch; otherwise a single process
  uses one. Raises a ValueError if it doesn't fit the devices or the batch.
  """
  count = jax.device_count()
  if text is None and jax.process_count() == 1 and batch_size % count:
    count = 1
  text = text or f'data={count}'
  axes = checks.axes(text)
  product = math.prod(axes.values())
  if product != count:
    msg = (
      f'--mesh {text} must use all devices: its sizes multiply to {product}, '
      f'and there are {count}; try data={count}'
    )
    raise ValueError(msg)
  if batch_size % count:
    msg = (
      f'--mesh {text}: --batch-size must be a multiple of {count}, not '
      f'{batch_size}'
    )
    raise ValueError(msg)
  if count == 1:
    return Placement()
  # The devices of a process are adjacent, and so are its rows of a batch.
  devices = sorted(jax.devices(), key=lambda one: (one.process_index, one.id))
  shaped = np.asarray(devices).reshape(list(axes.values()))
  return Placement(Mesh(shaped, tuple(axes)))


def _put(leaf: Any, sharding: Any) -> jax.Array:
  """Places an array that every process has; does not compare the copies."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    data = _put(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  values = np.asarray(leaf)
  return jax.make_array_from_callback(
    values.shape, sharding, lambda index: values[index]
  )
