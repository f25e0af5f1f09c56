"""A loss, its gradient and its Hessian products, as the mean over batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

ValueFn = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class MeanLoss:
  """A loss with its derivatives, compiled once for all batches of a shape."""

  value_fn: ValueFn
  args: tuple[Any, ...] = ()
  batches: Iterable[Any] | None = None

  def __post_init__(self) -> None:
    if isinstance(self.batches, Iterator):
      msg = (
        f'batches must be an iterable to reuse, such as a list, got '
        f'{type(self.batches).__name__}: write batches=list(...)'
      )
      raise ValueError(msg)

  def calls(self) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yields the arguments and the number of rows of every call."""
    if self.batches is None:
      yield self.args, 1.0
      return
    rows = None
    for batch in self.batches:
      shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
      if not shapes or shapes[0] == ():
        msg = (
          f'batches must hold pytrees whose leaves have one row per example, '
          f'got one with leaves of shapes {shapes}: write batches=[batch] for '
          f'a single batch.'
        )
        raise ValueError(msg)
      rows = float(shapes[0][0])
      yield (*self.args, batch), rows
    if rows is None:
      msg = 'batches must hold at least one batch, got none'
      raise ValueError(msg)

  def stacked_calls(self) -> list[tuple[Any, jax.Array]]:
    """Returns all calls, those of one shape stacked along a first axis."""
    groups: dict[Any, list[Any]] = {}
    for call in self.calls():
      leaves, structure = jax.tree.flatten(call)
      shapes = [(jnp.shape(x), jnp.result_type(x)) for x in leaves]
      groups.setdefault((structure, *shapes), []).append(call)
    stack = lambda *leaves: jnp.stack(leaves)
    return [jax.tree.map(stack, *group) for group in groups.values()]

  def value(self, params: optax.Params) -> jax.Array:
    """Returns the loss."""
    return self._mean(_value, params)

  def value_and_grad(self, params: optax.Params) -> tuple[jax.Array, Any]:
    """Returns the loss and its gradient."""
    return self._mean(_value_and_grad, params)

  def hessian_product(self, params: optax.Params, tangent: Any) -> Any:
    """Returns the Hessian times a vector, both like the parameters."""
    return self._mean(hessian_product, params, tangent)

  def _mean(self, measure: Callable[..., Any], params: Any, *more: Any) -> Any:
    mean, total_rows = None, 0.0
    for args, rows in self.calls():
      found = measure(self.value_fn, params, args, *more)
      total_rows += rows
      mean = found if mean is None else _add(mean, found, rows / total_rows)
    return mean


@functools.partial(jax.jit, static_argnums=0)
def hessian_product(
  value_fn: ValueFn, params: optax.Params, args: Any, tangent: Any
) -> Any:
  """Returns the Hessian times a vector, forward over reverse."""
  gradient = lambda params: jax.grad(value_fn)(params, *args)
  return jax.jvp(gradient, (params,), (tangent,))[1]


@functools.partial(jax.jit, static_argnums=0)
def _value(value_fn: ValueFn, params: optax.Params, args: Any) -> jax.Array:
  return value_fn(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(value_fn: ValueFn, params: optax.Params, args: Any) -> Any:
  return jax.value_and_grad(value_fn)(params, *args)


@jax.jit
def _add(mean: Any, found: Any, weight: Any) -> Any:
  """Updates a running mean, which, unlike a sum, doesn't grow with rows."""
  return jax.tree.map(
    lambda m, f: m + jnp.asarray(weight, m.dtype) * (f - m), mean, found
  )
