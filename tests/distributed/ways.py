"""All ways to train on several devices: a named axis, or sharded arrays."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.distributed import problem

OVER_AXIS = ('shard_map', 'shard_map_unchecked', 'pmap')
# How the devices are laid out, and what they hold of every weight.
PLACEMENTS = {
  'data': ('data', {'bias': (), 'kernel': (), 'out': ()}),
  'explicit': ('data', {'bias': (), 'kernel': (), 'out': ()}),
  'fsdp': (
    'data',
    {'bias': ('data',), 'kernel': (None, 'data'), 'out': ('data',)},
  ),
  'data_model': (
    ('data', 'model'),
    {'bias': ('model',), 'kernel': (None, 'model'), 'out': ('model',)},
  ),
}


class Trained(NamedTuple):
  """What training left behind.

  Attributes:
    params: the parameters.
    opt_state: state of the optimizer, without typed keys.
    ascended: whether each of the steps took the second gradient.
  """

  params: Any
  opt_state: Any
  ascended: Any


def mesh(axes='data', kind=AxisType.Auto):
  """Returns all devices in a row, or in two columns."""
  shape = (-1,) if axes == 'data' else (-1, 2)
  names = (axes,) if axes == 'data' else axes
  devices = np.array(jax.devices()).reshape(shape)
  return Mesh(devices, names, axis_types=(kind,) * len(names))


def spread(tree, devices, *spec):
  """Lays a tree out over the devices of all processes."""
  sharding = NamedSharding(devices, PartitionSpec(*spec))

  def place(leaf):
    host = np.asarray(leaf)
    return jax.make_array_from_callback(
      host.shape, sharding, lambda index: host[index]
    )

  return jax.tree.map(place, tree)


def over_axis(tx, way, batches):
  """Trains an optimizer that averages over the axis 'data'.

  Returns:
    what every device of this process holds in the end, in their order.
  """
  return copies(_PROGRAMS[way](tx, batches), stacked=way == 'pmap')


def _under_shard_map(tx, batches, *, checked):
  replicated, split = PartitionSpec(), PartitionSpec(None, 'data')
  params = spread(problem.params(), mesh())
  opt_state = tx.init(params)
  program = jax.shard_map(
    functools.partial(problem.train, tx, cast_over='data' if checked else None),
    mesh=mesh(),
    in_specs=(replicated, problem.specs(opt_state), split),
    out_specs=replicated,
    check_vma=checked,
  )
  batches = spread(batches, mesh(), None, 'data')
  return jax.jit(program)(params, opt_state, batches)


def _under_pmap(tx, batches):
  devices, local = jax.device_count(), jax.local_device_count()
  first = jax.process_index() * local

  def copied(leaf):
    return np.broadcast_to(leaf, (local, *leaf.shape))

  def split(leaf):
    parts = np.stack(np.split(np.asarray(leaf), devices, axis=1))
    return parts[first : first + local]

  def train(params, batches):
    return problem.train(tx, params, tx.init(params), batches)

  program = jax.pmap(train, axis_name='data')
  params = jax.tree.map(copied, problem.params())
  return program(params, jax.tree.map(split, batches))


_PROGRAMS = {
  'shard_map': functools.partial(_under_shard_map, checked=True),
  'shard_map_unchecked': functools.partial(_under_shard_map, checked=False),
  'pmap': _under_pmap,
}


def copies(tree, *, stacked=False):
  """Returns a tree of NumPy arrays for every device of this process."""

  def of_devices(leaf):
    shards = sorted(leaf.addressable_shards, key=lambda s: s.device.id)
    data = [np.asarray(shard.data) for shard in shards]
    return [x[0] for x in data] if stacked else data

  leaves, structure = jax.tree.flatten(tree)
  parts = zip(*map(of_devices, leaves), strict=True)
  return [Trained(*structure.unflatten(part)) for part in parts]


@functools.cache
def _program(name):
  tx = problem.optimizer(name)
  return tx, jax.jit(functools.partial(problem.train, tx))


def on_one_device(name):
  """Trains under plain `jit`, on one device."""
  tx, program = _program(name)
  params = problem.params()
  return Trained(*program(params, tx.init(params), problem.batches()))


def under_jit(name, placement):
  """Trains under `jit` on arrays that lie on all devices."""
  tx, program = _program(name)
  axes, specs = PLACEMENTS[placement]
  # As `jax.make_mesh` has them: part of the type of an array.
  kind = AxisType.Explicit if placement == 'explicit' else AxisType.Auto
  devices, given = mesh(axes, kind), problem.params()
  params = {
    'hidden': {
      leaf: spread(given['hidden'][leaf], devices, *specs[leaf])
      for leaf in ('bias', 'kernel')
    },
    'offset': spread(given['offset'], devices),
    'out': spread(given['out'], devices, *specs['out']),
  }
  batches = spread(problem.batches(), devices, None, 'data')
  return Trained(*program(params, tx.init(params), batches))
