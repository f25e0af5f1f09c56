"""Averages over devices, and values that are local to a device."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.trees import array_types

AxisName = Any


def average(tree: Any, axis_name: AxisName | None) -> Any:
  """Averages over the devices of `axis_name`; if it is None, does nothing."""
  return jax.lax.pmean(tree, axis_name) if axis_name else tree


def average_numbers(updates: Any, axis_name: AxisName | None) -> Any:
  """Averages gradients, without those of integers, which are of another kind.

  So leaves that a method returns as they came stay equal on all devices.
  Gradients that the base optimizer does not use are not communicated.
  """
  is_number = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  return jax.tree.map(
    lambda x: average(x, axis_name) if is_number(x) else x, updates
  )


def average_ascent(
  updates: Any, *, axis_name: Any = None, is_synced: bool = False, **_: Any
) -> Any:
  """Averages an ascent gradient, given the extra arguments of `update`."""
  return average(updates, None if is_synced else axis_name)


class AveragingPlan(NamedTuple):
  """Where a step averages over the devices: every gradient exactly once.

  Inputs of a policy and of a combination rule with state must be equal on all
  devices, so they are averaged first. Otherwise the direction is averaged,
  together with the scalars that a step reports.

  Attributes:
    axis_name: the axis to average over; None or () for none.
    is_synced: whether the ascent gradient is averaged.
    by_policy: whether the policy reads the unperturbed gradient.
    by_descent: whether the combination rule gets averaged gradients.
  """

  axis_name: AxisName | None
  is_synced: bool
  by_policy: bool
  by_descent: bool

  def ascent(self, tree: Any) -> Any:
    """Averages an ascent gradient, with `sync_ascent`."""
    return average(tree, self.axis_name) if self.is_synced else tree

  def clean(self, tree: Any) -> Any:
    """Averages the unperturbed gradient before anything depends on it."""
    early = self.by_policy or self.by_descent
    return average(tree, self.axis_name) if early else tree

  def perturbed(self, tree: Any) -> Any:
    """Averages the perturbed gradient before the gradients are combined."""
    return average(tree, self.axis_name) if self.by_descent else tree

  def ascended(self, tree: Any) -> Any:
    """Averages the results of an ascent step, inside its branch."""
    here = self.by_policy and not self.by_descent
    return average(tree, self.axis_name) if here else tree

  def output(self, tree: Any) -> Any:
    """Averages the results of either branch, unless they are averages."""
    late = not (self.by_policy or self.by_descent)
    return average(tree, self.axis_name) if late else tree


def names(axis_name: AxisName | None) -> tuple[Any, ...]:
  """Returns the names of axes; for `()` (independent devices) all of them."""
  if axis_name is None:
    return ()
  if axis_name == ():
    return jax.sharding.get_abstract_mesh().manual_axes
  return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def tracked(axes: tuple[Any, ...]) -> tuple[Any, ...]:
  """Returns the axes for which types say whether an array varies over them.

  Types say so only inside shard_map with check_vma. Elsewhere, even the type of
  the index of a device does not, and nothing can be cast or checked.
  """
  known = lambda name: name in array_types.varying(jax.lax.axis_index(name))
  return tuple(name for name in axes if known(name))


def missing(leaf: Any, axis_name: AxisName) -> tuple[Any, ...]:
  """Returns the axes that a leaf is known not to vary over."""
  varying = array_types.varying(leaf)
  return tuple(x for x in tracked(names(axis_name)) if x not in varying)


def as_local(tree: Any, axis_name: AxisName | None) -> Any:
  """Marks replicated values as local to a device.

  Inside `jax.shard_map` the gradient with respect to a replicated value is
  automatically summed over the axis; with respect to a local one it is local.
  """
  axes = frozenset(tracked(names(axis_name)))
  return jax.tree.map(lambda leaf: array_types.vary_over(leaf, axes), tree)


def check_loss(
  loss: Any, axis_name: AxisName | None, name: str = 'value_fn'
) -> None:
  """Raises if a loss to differentiate is averaged over the axis already.

  Its gradient with respect to local parameters would be too small.
  """
  if missing(loss, axis_name):
    msg = (
      f'{name} must return the loss of this device, got one that is equal on '
      f'all devices of axis_name={axis_name!r}: leave jax.lax.pmean out, as '
      f'the method averages.'
    )
    raise ValueError(msg)


def replicated(leaf: Any) -> Any:
  """Replicates an array along explicit mesh axes before indexing.

  On axes of type `Explicit` JAX refuses to index a split array; on other axes
  the compiler can do so.
  """
  split = _explicit_split(leaf)
  if split is None:
    return leaf
  everywhere = jax.sharding.NamedSharding(split.mesh, jax.P())
  return jax.sharding.reshard(leaf, everywhere)


def split_like(picked: Any, leaf: Any) -> Any:
  """Splits rows picked from `replicated(leaf)` like the leaf, if possible.

  Otherwise each device computes with all rows.
  """
  split = _explicit_split(leaf)
  if split is None or picked.shape[0] % _parts(split):
    return picked
  return jax.sharding.reshard(picked, split)


def _explicit_split(leaf: Any) -> jax.sharding.NamedSharding | None:
  sharding = array_types.explicit(leaf)
  return sharding if sharding is not None and any(sharding.spec) else None


def _parts(split: jax.sharding.NamedSharding) -> int:
  """Returns the number of parts that the first axis is split into."""
  names = split.spec[0] or ()
  names = names if isinstance(names, tuple) else (names,)
  return math.prod(split.mesh.shape[name] for name in names)
