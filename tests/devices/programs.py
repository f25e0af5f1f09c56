"""Training steps on eight devices: named axes or sharded arrays."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optax_sam import catalog
from tests.contracts import comparisons
from tests.oracles import problems, step
from tests.oracles.cases import all_cases
from tests.oracles.problems import NETWORK

DEVICES = 8
CASES = all_cases()
# The first case of every method whose step uses devices.
OF_METHODS = [
  name
  for name, case in CASES.items()
  if name in catalog.METHODS and case.takes('axis_name')
]
# Layout of the devices, and sharding of the weights.
PLACEMENTS = {
  'explicit': ('data', {}),
  'fsdp': (
    'data',
    {'bias': ('data',), 'kernel': (None, None, 'data'), 'out': ('data',)},
  ),
  'data_model': (
    ('data', 'model'),
    {'bias': ('model',), 'kernel': (None, None, 'model'), 'out': ('model',)},
  ),
}


class Trained(NamedTuple):
  """The arrays of one device after training.

  Attributes:
    params: the parameters.
    state: state of the optimizer, without typed keys and without per-device
      parts.
    ascended: for each step, whether it took the perturbed gradient.
  """

  params: Any
  state: Any
  ascended: list[bool]


def mesh(axes='data', kind=AxisType.Auto):
  """Returns a mesh of all devices with one or two axes."""
  shape = (-1,) if axes == 'data' else (-1, 2)
  names = (axes,) if axes == 'data' else axes
  devices = np.array(jax.devices()).reshape(shape)
  return Mesh(devices, names, axis_types=(kind,) * len(names))


def spread(tree, devices, specs):
  """Shards a tree over the devices of all processes."""

  def place(leaf, spec):
    sharding = NamedSharding(devices, spec)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(place(jax.random.key_data(leaf), spec))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(
      host.shape, sharding, lambda index: host[index]
    )

  if isinstance(specs, PartitionSpec):
    specs = jax.tree.map(lambda _: specs, tree)
  return jax.tree.map(place, tree, specs)


def specs_of(state):
  """Returns the partition specs of a state; batches are split over 'data'."""

  def spec(leaf):
    has_examples = leaf.shape[:1] == (NETWORK.examples,)
    return PartitionSpec('data') if has_examples else PartitionSpec()

  return jax.tree.map(spec, state)


class OverAxis:
  """A compiled step over the named axis 'data'.

  Attributes:
    text: the HLO.
  """

  def __init__(self, tx, way):
    self._is_pmap, checked = way == 'pmap', way == 'shard_map'
    cast_over = 'data' if checked else None
    one = NETWORK.training_step(tx, cast_over=cast_over)
    params, batch = NETWORK.params(), self._batch(0)
    state = tx.init(params)
    if self._is_pmap:
      copied = lambda x: jax.numpy.broadcast_to(x, (DEVICES, *x.shape))
      self._start = jax.tree.map(copied, (params, state))
      self._step = jax.pmap(one, axis_name='data')
      return
    whole, specs = PartitionSpec(), specs_of(state)
    self._own = [spec != whole for spec in jax.tree.leaves(specs)]
    self._start = (
      spread(params, mesh(), whole),
      spread(state, mesh(), specs),
    )
    program = jax.shard_map(
      one,
      mesh=mesh(),
      in_specs=(whole, specs, PartitionSpec('data')),
      out_specs=(whole, specs),
      check_vma=checked,
    )
    self._step = jax.jit(program).lower(*self._start, batch).compile()
    self.text = self._step.as_text()

  def _batch(self, t, batches=None):
    batches = NETWORK.batches() if batches is None else batches
    batch = jax.tree.map(lambda x: np.asarray(x[t]), batches)
    if self._is_pmap:
      return jax.tree.map(lambda x: np.stack(np.split(x, DEVICES)), batch)
    return spread(batch, mesh(), PartitionSpec('data'))

  def train(self, batches=None):
    """Trains and returns the arrays of every device of this process."""
    params, state = self._start
    ascended = []
    for t in range(NETWORK.steps):
      params, state = self._step(params, state, self._batch(t, batches))
      ascended.append(_copies(problems.ascended(state), stacked=self._is_pmap))
    leaves, structure = jax.tree.flatten(_without_keys((params, state)))
    if not self._is_pmap:
      shared = [False] * len(jax.tree.leaves(params)) + self._own
      pairs = zip(leaves, shared, strict=True)
      leaves = [np.zeros(()) if own else x for x, own in pairs]
    copies = [_copies(x, stacked=self._is_pmap) for x in leaves]
    return [
      Trained(
        *structure.unflatten([copy[i] for copy in copies]),
        [bool(copy[i]) for copy in ascended],
      )
      for i in range(jax.local_device_count())
    ]


def _without_keys(tree):
  def data(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf

  return jax.tree.map(data, tree)


def _copies(leaf, *, stacked):
  """Returns the value of one leaf on every device of this process."""
  if not isinstance(leaf, jax.Array) or (not leaf.shape and stacked):
    return [np.asarray(leaf)] * jax.local_device_count()
  if stacked:
    return list(np.asarray(leaf))
  shards = sorted(leaf.addressable_shards, key=lambda x: x.device.id)
  if len(shards) == 1:
    return [np.asarray(shards[0].data)] * jax.local_device_count()
  return [np.asarray(shard.data) for shard in shards]


def optimizer(name, *, sync=False, base=None, **given):
  """Returns the optimizer of a case over the named axis 'data'."""
  case = CASES[name]
  if case.takes('sync_ascent'):
    given['sync_ascent'] = sync
  base = NETWORK.base() if base is None else base
  batch = jax.tree.map(lambda x: x[0], NETWORK.batches())
  return case.optimizer(base, batch, axis_name='data', **given)


@functools.cache
def over_axis(name, way='shard_map', sync=False):
  """Returns the compiled step of a case."""
  return OverAxis(optimizer(name, sync=sync), way)


@functools.cache
def expected(name, devices=DEVICES, sync=False):
  return step.train(CASES[name].rule, NETWORK, devices=devices, sync=sync)


def assert_follows(name, found, devices=DEVICES, sync=False):
  """Raises unless a device agrees with the rule."""
  rule = expected(name, devices, sync)
  np.testing.assert_allclose(
    NETWORK.flat(found.params),
    rule.path[-1],
    rtol=0,
    atol=CASES[name].tolerance,
  )
  np.testing.assert_array_equal(found.ascended, rule.ascended)


def assert_equal_replicas(found):
  """Raises unless all replicas are bit-identical and finite."""
  first, *others = found
  assert len(others) == jax.local_device_count() - 1
  for other in others:
    comparisons.assert_equal(other[:2], first[:2])
    assert other.ascended == first.ascended
  assert comparisons.all_finite(first[:2])


@functools.cache
def under_jit(name, placement):
  """Trains under `jit` on arrays that are sharded over all devices."""
  case = CASES[name]
  batches = NETWORK.batches()
  tx = case.optimizer(NETWORK.base(), jax.tree.map(lambda x: x[0], batches))
  axes, specs = PLACEMENTS[placement]
  # Explicit axes, the default of `jax.make_mesh`: part of an array's type.
  kind = AxisType.Explicit if placement == 'explicit' else AxisType.Auto
  devices = mesh(axes, kind)
  params = NETWORK.params()
  specs = {name: PartitionSpec(*specs.get(name, ())) for name in params}
  params = spread(params, devices, specs)
  one, ascended = jax.jit(NETWORK.training_step(tx)), []
  state = tx.init(params)
  for t in range(NETWORK.steps):
    batch = jax.tree.map(lambda x, t=t: x[t], batches)
    batch = spread(batch, devices, PartitionSpec('data'))
    params, state = one(params, state, batch)
    ascended.append(bool(problems.ascended(state)))
  return Trained(params, state, ascended)
