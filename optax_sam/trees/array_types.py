"""Device information in the type of an array.

Inside `jax.shard_map` it may say over which axes the array varies; on a mesh
with axes of type `Explicit` it says how the array is split over them.
"""

from typing import Any

import jax
import jax.numpy as jnp


def varying(leaf: Any) -> frozenset[Any]:
  """Returns the manual axes that an array, its type or a shape varies over."""
  is_type = isinstance(leaf, (jax.ShapeDtypeStruct, jax.core.ShapedArray))
  found = (leaf if is_type else jax.typeof(leaf)).manual_axis_type
  return found.varying if found else frozenset()


def vary_over(leaf: Any, axes: frozenset[Any]) -> Any:
  """Returns the leaf, cast to vary over further axes."""
  missing = tuple(sorted(axes - varying(leaf)))
  return jax.lax.pcast(leaf, missing, to='varying') if missing else leaf


def vary_like(tree: Any, reference: Any) -> Any:
  """Casts all leaves to vary wherever a leaf of another tree does.

  Carries of a loop, and results of two branches, must agree in this.
  """
  axes = frozenset().union(*map(varying, jax.tree.leaves(reference)))
  return jax.tree.map(lambda leaf: vary_over(leaf, axes), tree)


def explicit(leaf: Any) -> jax.sharding.NamedSharding | None:
  """Returns the sharding of an array, or a shape, if it is part of its type."""
  is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
  sharding = leaf.sharding if is_shape else jax.typeof(leaf).sharding
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return None
  axis_types = sharding.mesh.axis_types
  return sharding if jax.sharding.AxisType.Explicit in axis_types else None


def zeros_of(shapes: Any) -> Any:
  """Returns zeros with the types of shapes from `jax.eval_shape`."""

  def zeros(x: Any) -> jax.Array:
    leaf = jnp.zeros(x.shape, x.dtype, out_sharding=explicit(x))
    return vary_over(leaf, varying(x))

  return jax.tree.map(zeros, shapes)
