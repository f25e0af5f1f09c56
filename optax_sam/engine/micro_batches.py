"""Sums over parts of a batch, computed part by part to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam.engine import devices
from optax_sam.trees import array_types, control_flow


def sum_over_chunks(
  function: Callable[[Any], Any],
  batch: Any,
  chunk_size: int,
) -> Any:
  """Sums a function of some rows over chunks of consecutive rows of a batch.

  If there is a remainder, one chunk is smaller.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  chunks, remainder = divmod(rows, chunk_size)
  whole = jax.tree.map(devices.replicated, batch)

  def of_rows(chunk: Any) -> Any:
    return function(jax.tree.map(devices.split_like, chunk, batch))

  total = None
  if remainder:
    total = of_rows(jax.tree.map(lambda x: x[rows - remainder :], whole))
  if chunks == 1:
    # No loop for one chunk: in loops XLA's CPU backend convolves slowly.
    only = of_rows(jax.tree.map(lambda x: x[:chunk_size], whole))
    return only if total is None else jax.tree.map(jnp.add, total, only)
  if not chunks:
    return total

  def split(leaf: jax.Array) -> jax.Array:
    even = leaf[: rows - remainder]
    return even.reshape(chunks, chunk_size, *leaf.shape[1:])

  stacked = jax.tree.map(split, whole)
  if not control_flow.is_traced():
    for i in range(chunks):
      at = lambda x, i=i: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
      found = of_rows(jax.tree.map(at, stacked))
      total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total
  if total is None:
    first = jax.tree.map(lambda x: x[0], stacked)
    total = array_types.zeros_of(jax.eval_shape(of_rows, first))

  def add(total: Any, chunk: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, of_rows(chunk)), None

  return jax.lax.scan(add, total, stacked)[0]
