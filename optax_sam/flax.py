"""Sharpness-aware steps in Flax: a linen train state, and functions for NNX.

Both passes of a step must use the same dropout mask, and only the first may
update the running statistics of batch norm. Needs `optax-sam[flax]`.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import optax
from flax import errors, nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from optax_sam.batch_norm import reestimate_batch_norm
from optax_sam.engine.loss_view import GradFn, PerExampleValueFn, ValueFn
from optax_sam.engine.partition import path_parts

__all__ = [
  'TrainState',
  'nnx_per_example_value_fn',
  'nnx_value_fn',
  'reestimate_batch_norm',
]


class TrainState(train_state.TrainState):
  """Flax's train state, with a step that forwards extra arguments to `tx`.

  For batch norm, subclass it with a field `batch_stats`, and pass the new ones
  to `apply_gradients`. `value_fn` must use the dropout key of the first pass.
  Scales of 8-bit floats are set by the incoming gradient, as in Flax: a method
  neither perturbs nor updates them.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> state = TrainState.create(
  ...   apply_fn=lambda params: jnp.sum(params['w'] ** 2),
  ...   params={'w': jnp.array([3.0, 4.0])},
  ...   tx=optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1)),
  ... )
  >>> grads = jax.grad(state.apply_fn)(state.params)
  >>> state = state.apply_gradients(grads=grads, value_fn=state.apply_fn)
  >>> [round(x, 3) for x in state.params['w'].tolist()]  # w - 0.2 * 1.1 * w
  [2.34, 3.12]
  """

  def apply_gradients(
    self,
    *,
    grads: optax.Updates,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    per_example_value_fn: PerExampleValueFn | None = None,
    batch: Any = None,
    extra_args: Mapping[str, Any] | None = None,
    **changes: Any,
  ) -> Self:
    """Takes one step with any `tx`, even one without extra arguments.

    Args:
      grads: unperturbed gradients, like `params`.
      value_fn: from the parameters to the scalar loss of the batch.
      grad_fn: from the parameters to its gradient, or to (loss, gradient).
      per_example_value_fn: from the parameters and a batch to losses (B,).
      batch: a pytree whose leaves have the examples on axis 0.
      extra_args: further extra arguments of `tx`, such as `{'value': loss}`
        for `optax.contrib.reduce_on_plateau`.
      **changes: fields to replace, such as `batch_stats`.

    Returns:
      The state after the step.
    """
    fields = {field.name for field in dataclasses.fields(self)}
    for name in changes.keys() - fields:
      msg = (
        f'{name} must be a field of {type(self).__name__} to be replaced; '
        f'pass an extra argument of tx as extra_args={{{name!r}: ...}}.'
      )
      raise ValueError(msg)
    own = {'value_fn': value_fn, 'grad_fn': grad_fn, 'batch': batch}
    own['per_example_value_fn'] = per_example_value_fn
    given = dict(extra_args or {})
    for name in given.keys() & own.keys():
      msg = (
        f'extra_args must hold further arguments only, got {name!r}: write '
        f'apply_gradients(grads=grads, {name}=...).'
      )
      raise ValueError(msg)
    # Without None, so that a method can report a missing argument.
    given |= {name: value for name, value in own.items() if value is not None}
    if isinstance(grads, Mapping) and OVERWRITE_WITH_GRADIENT in grads:
      given = self._without_scales(given)
    tx = optax.with_extra_args_support(self.tx)
    update = functools.partial(tx.update, **given)
    # The step of Flax handles 8-bit floats.
    bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
    changes = {'tx': self.tx, **changes}
    return super(TrainState, bound).apply_gradients(grads=grads, **changes)

  def _without_scales(self, given: dict[str, Any]) -> dict[str, Any]:
    """Turns functions of `params` into functions of `params['params']`."""

    def inner(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
      @functools.wraps(function)
      def of_inner(params: optax.Params, *args: Any, **kwargs: Any) -> Any:
        found = function({**self.params, 'params': params}, *args, **kwargs)
        if name != 'grad_fn':
          return found
        if isinstance(found, tuple):
          return found[0], found[1]['params']
        return found['params']

      return of_inner

    names = given.keys() & {'value_fn', 'grad_fn', 'per_example_value_fn'}
    return {**given, **{name: inner(name, given[name]) for name in names}}


def nnx_value_fn(
  model: nnx.Module,
  loss_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> ValueFn:
  """Returns the loss of an NNX model as a function of its parameters.

  Call it before the first pass. It copies the model and every NNX object among
  the arguments, such as `nnx.Rngs`, metrics or other models. So both passes
  draw the same random numbers, and changes by `loss_fn` in the second pass are
  dropped::

    value_fn = optax_sam.flax.nnx_value_fn(model, loss_fn, batch, rngs)
    value, grads = nnx.value_and_grad(loss_fn)(model, batch, rngs)
    optimizer.update(model, grads, value_fn=value_fn)

  For logs write `optax_sam.metrics(nnx.as_pure(optimizer.opt_state))`.

  Args:
    model: the model, in training mode.
    loss_fn: from (model, *args, **kwargs) to the loss, or to (loss, ...). NNX
      objects that it changes must be arguments.
    *args: further arguments of `loss_fn`, any pytrees.
    wrt: filter of the variables that are parameters, as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `loss_fn`.

  Returns:
    A function from the parameters to the scalar loss.

  Raises:
    ValueError: by the function, if the parameters aren't those of `wrt`; if
      `loss_fn` changes an NNX object that isn't among its arguments; or if it
      draws random numbers, and no pass has drawn any since the call of
      `nnx_value_fn`, which was too late. Objects without another reference,
      such as `nnx.clone(model)`, need no pass.

  >>> import jax.numpy as jnp
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> model.kernel[...] = jnp.array([[3.0], [4.0]])
  >>> value_fn = nnx_value_fn(model, lambda m: jnp.sum(m.kernel[...] ** 2))
  >>> float(value_fn(nnx.as_pure(nnx.state(model, nnx.Param))))
  25.0
  """
  of_params = _of_params(model, loss_fn, wrt, args, kwargs)
  # `update` passes extra arguments by name to functions that name them.
  return lambda params: of_params(params)


def nnx_per_example_value_fn(
  model: nnx.Module,
  losses_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> PerExampleValueFn:
  """Returns per-example losses of an NNX model, as a function of parameters.

  For methods that select examples. Call it before the first pass, like
  `nnx_value_fn`. A part of a batch has another dropout mask than the batch, as
  its shape differs. Write `optimizer.update(model, grads,
  per_example_value_fn=losses, batch=batch)`.

  Args:
    model: the model, in training mode.
    losses_fn: from (model, batch, *args, **kwargs) to losses or (losses, ...).
    *args: further arguments of `losses_fn`, any pytrees.
    wrt: filter of the variables that are parameters, as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `losses_fn`.

  Returns:
    A function from the parameters and a batch to its losses, shape (B,).

  Raises:
    ValueError: by the function, as in `nnx_value_fn`.

  >>> import jax.numpy as jnp
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> losses = nnx_per_example_value_fn(model, lambda m, x: m(x)[:, 0])
  >>> params = nnx.as_pure(nnx.state(model, nnx.Param))
  >>> losses(params, jnp.zeros((3, 2))).tolist()
  [0.0, 0.0, 0.0]
  """
  of_params = _of_params(model, losses_fn, wrt, args, kwargs)
  return lambda params, batch: of_params(params, batch)


def _of_params(
  model: nnx.Module, loss_fn: Any, wrt: Any, args: Any, kwargs: Any
) -> Callable[..., Any]:
  """Returns the loss of the current model, from parameters and a batch."""
  is_object = nnx.graphlib.is_graph_node
  leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_object)
  places = [i for i, leaf in enumerate(leaves) if is_object(leaf)]
  # Split together, so that shared objects stay shared.
  objects = [model, *(leaves[i] for i in places)]
  leaves = [None if is_object(leaf) else leaf for leaf in leaves]
  is_param = nnx.filterlib.to_predicate(wrt)
  graph, own, others = nnx.split(
    objects, lambda path, x: path[0] == 0 and is_param(path[1:], x), ...
  )
  # As arrays, since the first pass changes the caller's variables.
  others, expected = nnx.as_pure(others), _names(own.get(0, {}))
  live = [weakref.ref(stream) for stream in _streams(objects)]
  before = [stream.count.get_raw_value() for stream in _streams(objects)]
  # Only `live` may refer to the caller's objects from here on.
  del own, objects

  def value_fn(params: optax.Params, *batch: Any) -> Any:
    if differing := _names(params) ^ expected:
      msg = (
        f'wrt must choose the variables that the optimizer trains, got '
        f'{wrt!r}, which chooses {len(expected)} and differs at '
        f'{min(differing)!r}: give nnx_value_fn the wrt= of nnx.Optimizer, '
        f'such as wrt=nnx.LoRAParam.'
      )
      raise ValueError(msg)
    state = nnx.State({0: nnx.as_pure(params)} if expected else {})
    current, *found = nnx.merge(graph, state, others)
    given = list(leaves)
    for place, node in zip(places, found, strict=True):
      given[place] = node
    args, kwargs = jax.tree.unflatten(tree, given)
    try:
      result = loss_fn(current, *batch, *args, **kwargs)
    except errors.TraceContextError as error:
      msg = (
        f'loss_fn changes an NNX object that is not among its arguments, so '
        f'that the passes of a step differ: take it as an argument, for '
        f'example nnx_value_fn(model, loss_fn, batch, rngs). {error}'
      )
      raise ValueError(msg) from error
    streams = [ref() for ref in live]
    draws = None not in streams and _drawn([current, *found], before)
    if draws and not _drawn(streams, before):
      msg = (
        'nnx_value_fn must be called before the first pass: loss_fn draws '
        'random numbers, and no pass has drawn any since the call, so that the '
        'passes of a step would differ. Call it above nnx.value_and_grad. If '
        'the first pass works on a copy, give nnx_value_fn one too, by '
        'nnx.clone.'
      )
      raise ValueError(msg)
    return result[0] if isinstance(result, tuple) else result

  return value_fn


def _names(params: Any) -> set[str]:
  leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(params))
  return {'/'.join(path_parts(path)) for path, _ in leaves}


def _streams(objects: Any) -> list[nnx.RngStream]:
  nodes = (node for _, node in nnx.iter_graph(objects))
  return [node for node in nodes if isinstance(node, nnx.RngStream)]


def _drawn(objects: Any, before: list[Any]) -> bool:
  """Returns whether a random stream has another counter array than before."""
  counts = [stream.count.get_raw_value() for stream in _streams(objects)]
  return any(x is not y for x, y in zip(counts, before, strict=False))
