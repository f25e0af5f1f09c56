"""Rows of a table that may be split over devices, for a batch of any of them.

Of n devices number d owns the d-th of n equal parts of the table. Without an
axis name a device has all of it, as far as a program is concerned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Place(NamedTuple):
  """Where the rows of a batch are in this device's part of a table.

  With an axis name, those of the whole batch, in the order of the devices.

  Attributes:
    rows: first index, anything where the device doesn't own it.
    slot: second index, a scalar.
    owned: whether it does, bool (B,).
  """

  rows: jax.Array
  slot: jax.Array
  owned: jax.Array


def find(ids: Any, slot: jax.Array, size: int, axis_name: Any) -> Place:
  """Returns where examples are in a part of `size` rows."""
  rows = jnp.asarray(ids).astype(jnp.int32)
  if axis_name is not None:
    rows = jax.lax.all_gather(rows, axis_name, tiled=True)
    rows = rows - jax.lax.axis_index(axis_name) * size
  return Place(rows, slot, (rows >= 0) & (rows < size))


def read(
  table: jax.Array,
  filled: jax.Array,
  place: Place,
  like: jax.Array,
  axis_name: Any,
) -> tuple[jax.Array, jax.Array]:
  """Returns what the table has for this device's batch, and whether it does.

  Args:
    table: its values, (rows, slots, numbers).
    filled: which of them were written, bool (rows, slots).
    place: where to look.
    like: an array that is split as the result is to be.
    axis_name: axis that the table is split over.
  """
  values = _rows(table, place, like)
  known = place.owned & _rows(filled, place, place.owned)
  if axis_name is None:
    return values, known
  # Of each row one device knows something, and the others give zeros.
  values = jnp.where(known[:, None], values, jnp.zeros((), values.dtype))
  values, known = (
    jax.lax.psum_scatter(rows, axis_name, tiled=True)
    for rows in (values, known.astype(jnp.int8))
  )
  return values, known > 0


def write(
  table: jax.Array, place: Place, values: jax.Array, wanted: jax.Array
) -> jax.Array:
  """Returns the table with rows replaced where they are wanted and owned."""
  # What the table has is read for both purposes, so that writing depends on
  # reading. Else XLA would keep a copy of the whole table to read from.
  former = _rows(table, place, values)
  wanted = wanted.reshape(-1, *[1] * (values.ndim - 1))
  values = jnp.where(wanted, values, former)
  # Beyond the end, where they are dropped.
  rows = jnp.where(place.owned, place.rows, len(table))
  out = _explicit(table)
  return table.at[rows, place.slot].set(values, mode='drop', out_sharding=out)


def _rows(table: jax.Array, place: Place, like: jax.Array) -> jax.Array:
  at, out = (place.rows, place.slot), _explicit(like)
  return table.at[at].get(mode='clip', out_sharding=out)


def _explicit(array: jax.Array) -> Any:
  """Returns a sharding that is part of an array's type; else the compiler's."""
  sharding = jax.typeof(array).sharding
  explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
  return sharding if explicit else None
