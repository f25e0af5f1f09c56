"""Averages over devices, and a check that gradients are local to a device."""

import math
from typing import Any, NamedTuple

import jax

from optax_sam.trees import array_types

AxisName = Any


def average(tree: Any, axis_name: AxisName | None) -> Any:
  """Averages over the devices of `axis_name`; without one, does nothing."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def average_ascent(
  updates: Any, *, axis_name: Any = None, is_synced: bool = False, **_: Any
) -> Any:
  """Averages an ascent gradient, given the extra arguments of `update`."""
  return average(updates, None if is_synced else axis_name)


class AveragingPlan(NamedTuple):
  """Where a step averages over the devices: every gradient exactly once.

  What a policy decides by, and what a descent stores, must be equal on all
  devices, so it is averaged before they see it. Otherwise the direction is
  averaged, together with the scalars that a step reports.

  Attributes:
    axis_name: the axis to average over; None for none.
    is_synced: whether the ascent gradient is averaged.
    by_policy: whether the policy looks at the clean gradient.
    by_descent: whether the descent combines averaged gradients.
  """

  axis_name: AxisName | None
  is_synced: bool
  by_policy: bool
  by_descent: bool

  def ascent(self, tree: Any) -> Any:
    """Averages an ascent gradient, if that is wanted."""
    return average(tree, self.axis_name) if self.is_synced else tree

  def clean(self, tree: Any) -> Any:
    """Averages the clean gradient before anything depends on it."""
    early = self.by_policy or self.by_descent
    return average(tree, self.axis_name) if early else tree

  def perturbed(self, tree: Any) -> Any:
    """Averages the perturbed gradient before the descent sees it."""
    return average(tree, self.axis_name) if self.by_descent else tree

  def ascended(self, tree: Any) -> Any:
    """Averages what an ascending step returns, in its branch."""
    here = self.by_policy and not self.by_descent
    return average(tree, self.axis_name) if here else tree

  def skipped(self, tree: Any) -> Any:
    """Marks what a skipping step reports as local, if it is averaged yet."""
    late = not (self.by_policy or self.by_descent)
    return as_local(tree, self.axis_name) if late else tree

  def output(self, tree: Any) -> Any:
    """Averages what either branch returns, unless that has been done."""
    late = not (self.by_policy or self.by_descent)
    return average(tree, self.axis_name) if late else tree


def _names(axis_name: AxisName) -> tuple[str, ...]:
  return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def _missing(leaf: Any, axis_name: AxisName) -> tuple[str, ...]:
  """Returns the axes that a leaf is known not to vary over."""
  varying = jax.typeof(leaf).manual_axis_type.varying
  # Outside of shard_map with check_vma nothing is known to vary, not even
  # the index of the device: then there is nothing to cast or to check.
  tracked = [
    name
    for name in _names(axis_name)
    if name in jax.typeof(jax.lax.axis_index(name)).manual_axis_type.varying
  ]
  return tuple(name for name in tracked if name not in varying)


def as_local(tree: Any, axis_name: AxisName | None) -> Any:
  """Marks replicated values as local to a device.

  Inside `jax.shard_map` the gradient with respect to a replicated value is
  summed over the axis behind one's back; with respect to a local one it stays
  local.
  """
  if axis_name is None:
    return tree

  def cast(leaf: Any) -> Any:
    missing = _missing(leaf, axis_name)
    return jax.lax.pcast(leaf, missing, to='varying') if missing else leaf

  return jax.tree.map(cast, tree)


def whole(leaf: Any) -> Any:
  """Returns an array to pick from, which explicit axes don't split.

  Where axes of a mesh are part of an array's type, JAX refuses to pick from
  what is split; else the compiler finds a way.
  """
  split = _explicit_split(leaf)
  if split is None:
    return leaf
  everywhere = jax.sharding.NamedSharding(split.mesh, jax.P())
  return jax.sharding.reshard(leaf, everywhere)


def split_like(picked: Any, leaf: Any) -> Any:
  """Splits what was picked from `whole(leaf)` as the leaf was, if it can be.

  Otherwise each device computes with all of it.
  """
  split = _explicit_split(leaf)
  if split is None or picked.shape[0] % _parts(split):
    return picked
  return jax.sharding.reshard(picked, split)


def _explicit_split(leaf: Any) -> jax.sharding.NamedSharding | None:
  sharding = array_types.explicit(leaf)
  return sharding if sharding is not None and any(sharding.spec) else None


def _parts(split: jax.sharding.NamedSharding) -> int:
  """Returns the number of parts that the first axis of an array is in."""
  names = split.spec[0] or ()
  names = names if isinstance(names, tuple) else (names,)
  return math.prod(split.mesh.shape[name] for name in names)


def check_local(updates: Any, axis_name: AxisName | None) -> None:
  """Raises if gradients were summed over the axis before they came here."""
  if axis_name is None:
    return
  for leaf in jax.tree.leaves(updates):
    if _missing(leaf, axis_name):
      msg = (
        f'updates must be local gradients, got gradients that are equal on '
        f'all devices of axis_name={axis_name!r}: inside jax.shard_map the '
        f'gradient with respect to replicated parameters is summed over the '
        f'axis. Write grads = jax.grad(loss)(jax.lax.pcast(params, '
        f"{axis_name!r}, to='varying')), and don't average them: the element "
        f'does.'
      )
      raise ValueError(msg)
