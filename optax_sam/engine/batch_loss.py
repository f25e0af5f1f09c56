"""The loss of a batch, computed part by part to save memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import devices
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.models import explained
from optax_sam.engine.partition import Leaves
from optax_sam.trees import control_flow, tree_math


class BatchLoss(NamedTuple):
  """The loss of one batch as a function of the parameters, part by part.

  The functions are those of `make_step`; `args` are their further arguments,
  and `parts` is the number of equal parts in which the loss is computed.
  """

  loss_fn: Any
  per_example_loss_fn: Any
  has_aux: bool
  batch: Any
  args: tuple[Any, ...]
  parts: int

  def of(self, params: optax.Params, batch: Any) -> tuple[jax.Array, Any]:
    """Returns the loss of some examples, and aux or per-example losses."""
    if self.loss_fn is None:
      losses = self.of_examples(params, batch)
      return jnp.mean(losses), losses
    found = explained(self.loss_fn)(params, batch, *self.args)
    if self.has_aux and not (isinstance(found, tuple) and len(found) == 2):
      msg = (
        f'loss_fn must return (loss, aux) with has_aux=True, got '
        f'{_types(found)}: return both, or leave has_aux out.'
      )
      raise ValueError(msg)
    value, aux = found if self.has_aux else (found, None)
    is_one = jax.tree_util.all_leaves([value]) and jnp.shape(value) == ()
    if not is_one or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
      msg = (
        f'loss_fn must return a real scalar, got {_types(value)}: write '
        f'has_aux=True if it returns more, jnp.mean(losses) if losses.'
      )
      raise ValueError(msg)
    return value, aux

  def of_examples(self, params: optax.Params, batch: Any) -> jax.Array:
    """Returns the per-example losses of some examples."""
    losses_fn = explained(self.per_example_loss_fn)
    losses = losses_fn(params, batch, *self.args)
    wanted, got = (_num_examples(batch),), jax.tree.map(jnp.shape, losses)
    if got != wanted:
      msg = (
        f'per_example_loss_fn must return one loss per example, shape {wanted},'
        f' got shape {got}.'
      )
      raise ValueError(msg)
    return losses

  def value_and_grad(
    self, params: optax.Params, axis_name: Any, *, keep: int = 2
  ) -> tuple[Any, optax.Updates]:
    """Returns (loss, aux) of the batch, or (loss,), and the local gradient."""
    leaves = Leaves.of(params)
    w = devices.as_local(leaves.split(params), axis_name)

    def of_part(batch: Any) -> tuple[Any, optax.Updates]:
      whole = lambda w: self.of(leaves.join(w, params), batch)
      found, grads = jax.value_and_grad(whole, has_aux=True)(w)
      return found[:keep], grads

    def add(total: optax.Updates, batch: Any) -> tuple[optax.Updates, Any]:
      found, grads = of_part(batch)
      add = lambda x, y: x + y.astype(x.dtype)
      return jax.tree.map(add, total, grads), found

    if self.parts == 1:
      found, grads = of_part(self.batch)
    else:
      total, found = _scan(add, tree_math.zeros_like(w), self.split())
      mean = lambda x, y: (x / self.parts).astype(y.dtype)
      grads = jax.tree.map(mean, total, w)
      rest = map(_joined, found[1:]) if self.loss_fn is None else found[1:]
      found = jnp.mean(found[0]), *rest
    return found, leaves.join(grads, jax.tree.map(jnp.zeros_like, params))

  def second(self, params: optax.Params, axis_name: Any) -> tuple[Any, Any]:
    """Returns (loss, gradient) at the parameters that a method passes."""
    (value,), grads = self.value_and_grad(params, axis_name, keep=1)
    return value, grads

  def value_fn(
    self,
    params: optax.Params,
    # Optax's line searches refuse extra arguments that this does not name.
    grad_fn: Any = None,
    per_example_value_fn: Any = None,
    batch: Any = None,
    losses: Any = None,
  ) -> jax.Array:
    """Returns the loss of the batch."""
    del grad_fn, per_example_value_fn, batch, losses
    if self.parts == 1:
      return self.of(params, self.batch)[0]
    return jnp.mean(_map(lambda x: self.of(params, x)[0], self.split()))

  def losses(self, params: optax.Params, batch: Any) -> jax.Array:
    """Returns per-example losses, in chunks of at most one part."""
    of = lambda batch: self.of_examples(params, batch)
    rows, size = _num_examples(batch), _num_examples(self.batch) // self.parts
    if self.parts == 1 or rows <= size:
      return of(batch)
    whole = rows - rows % size
    head = jax.tree.map(lambda x: x[:whole], batch)
    found = _map(of, _split(head, whole // size))
    if whole == rows:
      return _joined(found)
    rest = of(jax.tree.map(lambda x: x[whole:], batch))
    return jnp.concatenate([_joined(found), rest])

  def split(self) -> Any:
    """Stacks the parts of the batch."""
    rows = _num_examples(self.batch)
    if not rows or rows % self.parts:
      msg = (
        f'accumulate_steps must divide the batch, got accumulate_steps='
        f'{self.parts} for {rows} examples: pass a divisor, or drop examples.'
      )
      raise ValueError(msg)
    return _split(self.batch, self.parts)


def _types(tree: Any) -> str:
  name = lambda x: str(getattr(x, 'aval', type(x).__name__))
  return str(jax.tree.map(name, tree))


def _num_examples(batch: Any) -> int:
  return LossView(per_example_value_fn=jnp.zeros, batch=batch).num_examples


def _scan(add: Callable[..., Any], total: Any, parts: Any) -> tuple[Any, Any]:
  """Scans; without `jax.jit` by a Python loop, as JAX would recompile it."""
  if control_flow.is_traced():
    return jax.lax.scan(add, total, parts)
  found = []
  for i in range(len(jax.tree.leaves(parts)[0])):
    total, part = add(total, jax.tree.map(lambda x, i=i: x[i], parts))
    found.append(part)
  return total, jax.tree.map(lambda *x: jnp.stack(x), *found)


def _map(function: Callable[[Any], jax.Array], parts: Any) -> jax.Array:
  """Maps over parts without storing their intermediate results."""
  function = jax.checkpoint(function)
  return _scan(lambda _, part: (None, function(part)), None, parts)[1]


def _split(batch: Any, parts: int) -> Any:
  """Stacks the rows i, i + parts, ... for each i from 0 on."""

  def split(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    size = leaf.shape[0] // parts
    if size % (jax.typeof(leaf).sharding.mesh.size or 1):
      leaf = devices.replicated(leaf)  # JAX refuses it on explicit axes
    return leaf.reshape(size, parts, *leaf.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def _joined(stacked: jax.Array) -> jax.Array:
  """Undoes `_split`, for an array with one number per example."""
  return stacked.swapaxes(0, 1).reshape(stacked.size)
