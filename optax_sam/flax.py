"""Sharpness-aware steps in Flax: a linen train state, and functions for NNX.

Both passes of a step must see the same dropout mask, and only the first may
advance the running statistics of batch norm. Needs `optax-sam[flax]`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import optax
from flax import nnx
from flax.training import train_state

from optax_sam.batch_norm import reestimate_batch_norm
from optax_sam.engine.loss_view import GradFn, PerExampleValueFn, ValueFn

__all__ = [
  'TrainState',
  'nnx_per_example_value_fn',
  'nnx_value_fn',
  'reestimate_batch_norm',
]


class TrainState(train_state.TrainState):
  """The train state of Flax, with a step that passes extra arguments on.

  Subclass it for what else a model needs, as one does with that of Flax::

    class State(optax_sam.flax.TrainState):
      batch_stats: Any


    @jax.jit
    def train_step(state, batch, key):
      def loss_fn(params):
        logits, mutated = state.apply_fn(
          {'params': params, 'batch_stats': state.batch_stats},
          batch['inputs'],
          train=True,
          rngs={'dropout': key},
          mutable=['batch_stats'],
        )
        return loss(logits, batch['labels']), mutated['batch_stats']

      (value, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
      )
      state = state.apply_gradients(
        grads=grads,
        value_fn=lambda params: loss_fn(params)[0],
        batch_stats=batch_stats,
      )
      return state, value

  `batch_stats` come from the clean pass, those of the second are dropped; and
  as `loss_fn` closes over one `key`, both passes see one dropout mask.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> from optax_sam.flax import TrainState
  >>> state = TrainState.create(
  ...   apply_fn=lambda params: jnp.sum(params['w'] ** 2),
  ...   params={'w': jnp.array([3.0, 4.0])},
  ...   tx=optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1)),
  ... )
  >>> state = state.apply_gradients(
  ...   grads=jax.grad(state.apply_fn)(state.params), value_fn=state.apply_fn
  ... )
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
    """Takes one step.

    `tx` need not be one of this library, nor take extra arguments at all.

    Args:
      grads: gradients of the clean pass, like `params`.
      value_fn: from the parameters to the scalar loss of the batch.
      grad_fn: from the parameters to its gradient, or to (loss, gradient).
      per_example_value_fn: from the parameters and a batch to the losses of
        its examples, shape (B,).
      batch: a pytree whose leaves have the examples on axis 0.
      extra_args: further extra arguments that an element of `tx` wants, such
        as `{'value': loss}` for `optax.contrib.reduce_on_plateau`.
      **changes: fields to replace, such as `batch_stats`.

    Returns:
      The state after the step.

    Raises:
      ValueError: if a change is no field of this class, if `extra_args` repeats
        an argument, or if `tx` lacks what it needs.
    """
    own = {
      'value_fn': value_fn,
      'grad_fn': grad_fn,
      'per_example_value_fn': per_example_value_fn,
      'batch': batch,
    }
    further = dict(extra_args or {})
    self._check_names(changes, own, further)
    # What was not given is left out, so that an element that needs it says so.
    given = {name: value for name, value in own.items() if value is not None}
    given.update(further)
    tx = optax.with_extra_args_support(self.tx)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
      return tx.update(updates, state, params, **given)

    # The step itself stays that of Flax, with its care for 8-bit floats.
    bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
    changes = {'tx': self.tx, **changes}
    return super(TrainState, bound).apply_gradients(grads=grads, **changes)

  def _check_names(
    self,
    changes: Mapping[str, Any],
    own: Mapping[str, Any],
    further: Mapping[str, Any],
  ) -> None:
    fields = {field.name for field in dataclasses.fields(self)}
    for name in set(changes) - fields:
      msg = (
        f'{name} must be a field of {type(self).__name__} to be replaced; '
        f'an extra argument for tx goes into extra_args={{{name!r}: ...}}.'
      )
      raise ValueError(msg)
    for name in set(further) & set(own):
      msg = (
        f'extra_args must hold further arguments only, got {name!r}: write '
        f'apply_gradients(grads=grads, {name}=...).'
      )
      raise ValueError(msg)


def nnx_value_fn(
  model: nnx.Module,
  loss_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> ValueFn:
  """Returns the loss of an NNX model as a function of its parameters.

  Call it before the clean pass: it keeps what the model holds beside its
  parameters, such as running statistics and the counters of its random
  streams, as they are at that moment. The function then starts from them at
  each call, and drops whatever `loss_fn` changes::

    @nnx.jit
    def train_step(model, optimizer, batch):
      value_fn = optax_sam.flax.nnx_value_fn(model, loss_fn, batch)
      value, grads = nnx.value_and_grad(loss_fn)(model, batch)
      optimizer.update(model, grads, value_fn=value_fn)
      return value

  So both passes see one dropout mask, and a step updates running statistics
  once. Logs: `optax_sam.metrics(nnx.as_pure(optimizer.opt_state))`.

  Args:
    model: the model, in training mode.
    loss_fn: from (model, *args, **kwargs) to the scalar loss, or to a tuple of
      it and more.
    *args: further arguments of `loss_fn`.
    wrt: which variables are the parameters; the same as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `loss_fn`.

  Returns:
    A function from the parameters, as `nnx.Optimizer.update` hands them on, to
    the scalar loss.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> from flax import nnx
  >>> from optax_sam.flax import nnx_value_fn
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> model.kernel[...] = jnp.array([[3.0], [4.0]])
  >>> tx = optax.chain(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  >>> loss_fn = lambda model: jnp.sum(model.kernel[...] ** 2)
  >>> value_fn = nnx_value_fn(model, loss_fn)
  >>> grads = nnx.grad(loss_fn)(model)
  >>> _ = optimizer.update(model, grads, value_fn=value_fn)
  >>> [round(x, 3) for x in model.kernel[...].ravel().tolist()]
  [2.34, 3.12]
  """
  rebuild = _snapshot(model, wrt)

  def value_fn(params: optax.Params) -> jax.Array:
    return _first(loss_fn(rebuild(params), *args, **kwargs))

  return value_fn


def nnx_per_example_value_fn(
  model: nnx.Module,
  losses_fn: Callable[..., Any],
  *args: Any,
  wrt: Any = nnx.Param,
  **kwargs: Any,
) -> PerExampleValueFn:
  """Returns the losses of an NNX model's examples, for methods that pick some.

  Like `nnx_value_fn`, to be called before the clean pass, but the batch is
  left open, because the method passes a part of it::

    losses = optax_sam.flax.nnx_per_example_value_fn(model, losses_fn)
    value, grads = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, grads, per_example_value_fn=losses, batch=batch)

  A part of a batch has a dropout mask of its own, as it has another shape.

  Args:
    model: the model, in training mode.
    losses_fn: from (model, batch, *args, **kwargs) to the losses, shape (B,),
      or to a tuple of them and more.
    *args: further arguments of `losses_fn`.
    wrt: which variables are the parameters; the same as in `nnx.Optimizer`.
    **kwargs: further keyword arguments of `losses_fn`.

  Returns:
    A function from the parameters and a batch, whose leaves have the examples
    on axis 0, to the losses of its examples, shape (B,).

  >>> import jax.numpy as jnp
  >>> from flax import nnx
  >>> from optax_sam.flax import nnx_per_example_value_fn
  >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
  >>> losses = nnx_per_example_value_fn(model, lambda m, x: m(x)[:, 0])
  >>> params = nnx.as_pure(nnx.state(model, nnx.Param))
  >>> losses(params, jnp.zeros((3, 2))).tolist()
  [0.0, 0.0, 0.0]
  """
  rebuild = _snapshot(model, wrt)

  def per_example_value_fn(params: optax.Params, batch: Any) -> jax.Array:
    return _first(losses_fn(rebuild(params), batch, *args, **kwargs))

  return per_example_value_fn


def _snapshot(model: nnx.Module, wrt: Any) -> Callable[[Any], nnx.Module]:
  graph, _, others = nnx.split(model, wrt, ...)
  # Arrays instead of variables: the latter are those of the model itself, and
  # the clean pass changes them.
  others = nnx.as_pure(others)
  return lambda params: nnx.merge(graph, params, others)


def _first(result: Any) -> Any:
  return result[0] if isinstance(result, tuple) else result
