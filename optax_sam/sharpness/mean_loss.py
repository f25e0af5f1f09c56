"""The loss that is measured: of one call, or the mean over batches."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

ValueFn = Callable[..., jax.Array]


class MeanLoss:
  """A loss with its derivatives, compiled once for all batches of a shape."""

  def __init__(
    self,
    value_fn: ValueFn,
    args: tuple[Any, ...] = (),
    batches: Iterable[Any] | None = None,
  ) -> None:
    """Holds the data without reading any.

    Args:
      value_fn: from the parameters, `args` and a batch to a scalar loss.
      args: arrays that are the same for all batches.
      batches: pytrees whose leaves have one row an example; None for none.

    Raises:
      ValueError: if the batches can be gone through but once.
    """
    if isinstance(batches, Iterator):
      msg = (
        f'batches must be what can be gone through again, such as a list, got '
        f'{type(batches).__name__}: write batches=list(...)'
      )
      raise ValueError(msg)
    self._value_fn = value_fn
    self._args = args
    self._batches = batches

  def calls(self) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yields the arguments of every call, and how many rows it counts for.

    Raises:
      ValueError: if there is no batch, or one without rows.
    """
    if self._batches is None:
      yield self._args, 1.0
      return
    empty = True
    for batch in self._batches:
      empty = False
      yield (*self._args, batch), float(_num_rows(batch))
    if empty:
      msg = 'batches must hold at least one batch, got none'
      raise ValueError(msg)

  def each(self) -> Iterator[tuple['MeanLoss', float]]:
    """Yields the loss of every batch alone, and its number of rows."""
    for args, rows in self.calls():
      yield MeanLoss(self._value_fn, args), rows

  def stacked(self) -> tuple[ValueFn, list[Any], list[jax.Array]]:
    """Returns all calls, those of one shape as one, and their rows.

    Returns:
      The function; its arguments, of each shape with a first axis for the
      calls; and, alike, for how many rows each counts.
    """
    groups: dict[Any, list[tuple[Any, float]]] = {}
    for args, rows in self.calls():
      shapes = [
        (jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(args)
      ]
      kind = (jax.tree.structure(args), tuple(shapes))
      groups.setdefault(kind, []).append((args, rows))
    calls, counts = [], []
    for group in groups.values():
      together = zip(*(args for args, _ in group), strict=True)
      calls.append(
        tuple(
          jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
          for each in together
        )
      )
      counts.append(jnp.asarray([rows for _, rows in group]))
    return self._value_fn, calls, counts

  def value(self, params: optax.Params) -> jax.Array:
    """Returns the loss."""
    return self._mean(lambda args: _value(self._value_fn, params, args))

  def value_and_grad(self, params: optax.Params) -> tuple[jax.Array, Any]:
    """Returns the loss and its gradient."""
    return self._mean(
      lambda args: _value_and_grad(self._value_fn, params, args)
    )

  def hessian_product(self, params: optax.Params, tangent: Any) -> Any:
    """Returns the Hessian times a vector, both like the parameters."""
    return self._mean(
      lambda args: hessian_product(self._value_fn, params, args, tangent)
    )

  def _mean(self, measure: Callable[[Any], Any]) -> Any:
    total, total_rows = None, 0.0
    for args, rows in self.calls():
      found = measure(args)
      total_rows += rows
      total = found if total is None else _add(total, found, rows / total_rows)
    return total


def _num_rows(batch: Any) -> int:
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
  if not shapes or shapes[0] == ():
    msg = (
      f'batches must hold pytrees whose leaves have one row an example, got '
      f'one with leaves of shapes {shapes}: write batches=[batch] for a single '
      f'batch.'
    )
    raise ValueError(msg)
  return shapes[0][0]


@functools.partial(jax.jit, static_argnums=0)
def hessian_product(
  value_fn: ValueFn, params: optax.Params, args: Any, tangent: Any
) -> Any:
  """Returns the Hessian times a vector, forward over reverse."""

  def gradient(params: optax.Params) -> optax.Updates:
    return jax.grad(value_fn)(params, *args)

  return jax.jvp(gradient, (params,), (tangent,))[1]


@functools.partial(jax.jit, static_argnums=0)
def _value(value_fn: ValueFn, params: optax.Params, args: Any) -> jax.Array:
  return value_fn(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(
  value_fn: ValueFn, params: optax.Params, args: Any
) -> tuple[jax.Array, optax.Updates]:
  return jax.value_and_grad(value_fn)(params, *args)


@jax.jit
def _add(mean: Any, found: Any, weight: Any) -> Any:
  """A running mean, so that nothing grows with the number of rows."""
  return jax.tree.map(
    lambda m, f: m + jnp.asarray(weight, m.dtype) * (f - m), mean, found
  )
