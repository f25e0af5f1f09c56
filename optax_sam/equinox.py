"""Sharpness-aware steps of Equinox models, stateful ones too.

`init` and `update` take parameters: the arrays of a model, with None in place
of all other leaves. The loss takes the model. Needs `optax-sam[equinox]`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from optax_sam.engine.loss_view import PerExampleValueFn, ValueFn

__all__ = [
  'deserialise_leaf',
  'equinox_per_example_value_fn',
  'equinox_value_fn',
  'serialise_leaf',
]


def equinox_value_fn(
  model: Any, loss_fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> ValueFn:
  """Returns the loss of an Equinox model as a function of its parameters.

  Call it before the first pass, with the same arguments: it copies the keys and
  the state of stateful layers, which Equinox lets you use only once. The state
  that the second pass returns is dropped::

    value_fn = optax_sam.equinox.equinox_value_fn(model, loss_fn, batch, key)
    value, grads = eqx.filter_value_and_grad(loss_fn)(model, batch, key)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
    model = eqx.apply_updates(model, updates)

  Args:
    model: the whole model, in training mode.
    loss_fn: from (model, *args, **kwargs) to the loss, or to (loss, ...).
    *args: further arguments of `loss_fn`, any pytrees.
    **kwargs: further keyword arguments of `loss_fn`.

  Returns:
    A function from the parameters, such as `eqx.filter(model,
    eqx.is_inexact_array)`, to the scalar loss. Where they are None, the leaves
    of `model` are used.

  Raises:
    ValueError: if the state of a stateful layer has been used already; by the
      function, if the parameters don't have the structure of `model`.

  >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
  >>> value_fn = equinox_value_fn(model, lambda m, x: m(x)[0], jnp.zeros(2))
  >>> params = eqx.filter(model, eqx.is_inexact_array)
  >>> float(value_fn(params)) == float(model.bias[0])
  True
  """
  of_params = _of_params(model, loss_fn, args, kwargs)
  # `update` passes extra arguments by name to functions that name them.
  return lambda params: of_params(params)


def equinox_per_example_value_fn(
  model: Any, losses_fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> PerExampleValueFn:
  """Returns per-example losses of a model, as a function of parameters.

  For methods that select examples. Call it before the first pass, like
  `equinox_value_fn`, and write
  `tx.update(grads, opt_state, params, per_example_value_fn=losses, batch=b)`.

  Args:
    model: the whole model, in training mode.
    losses_fn: from (model, batch, *args, **kwargs) to losses or (losses, ...).
    *args: further arguments of `losses_fn`, any pytrees.
    **kwargs: further keyword arguments of `losses_fn`.

  Returns:
    A function from the parameters and a batch to its losses, shape (B,).

  Raises:
    ValueError: as in `equinox_value_fn`.

  >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
  >>> losses_fn = lambda m, batch: jax.vmap(m)(batch)[:, 0]
  >>> losses = equinox_per_example_value_fn(model, losses_fn)
  >>> losses(eqx.filter(model, eqx.is_array), jnp.zeros((3, 2))).shape
  (3,)
  """
  of_params = _of_params(model, losses_fn, args, kwargs)
  return lambda params, batch: of_params(params, batch)


def serialise_leaf(file: Any, leaf: Any) -> None:
  """Writes a leaf of a state, including typed keys, which Equinox does not.

  Write `eqx.tree_serialise_leaves(path, opt_state, filter_spec=serialise_leaf)`
  and read with `deserialise_leaf`.

  Args:
    file: an open binary file.
    leaf: an array, a typed key or any other leaf that Equinox writes.

  Returns:
    None.

  >>> import io
  >>> file, key = io.BytesIO(), jax.random.key(3)
  >>> eqx.tree_serialise_leaves(file, {'key': key}, filter_spec=serialise_leaf)
  >>> _ = file.seek(0)
  >>> like = {'key': jax.random.key(0)}
  >>> read = eqx.tree_deserialise_leaves(file, like, deserialise_leaf)
  >>> bool(read['key'] == key)
  True
  """
  if _is_key(leaf):
    leaf = jax.random.key_data(leaf)
  eqx.default_serialise_filter_spec(file, leaf)


def deserialise_leaf(file: Any, leaf: Any) -> Any:
  """Reads a leaf that `serialise_leaf` has written.

  Args:
    file: an open binary file.
    leaf: a leaf like the one to read, from a state that `init` returns.

  Returns:
    The leaf.

  Raises:
    RuntimeError: by Equinox, if shapes or dtypes differ.

  >>> import io
  >>> file = io.BytesIO()
  >>> serialise_leaf(file, jax.random.key(3))
  >>> _ = file.seek(0)
  >>> bool(deserialise_leaf(file, jax.random.key(0)) == jax.random.key(3))
  True
  """
  if not _is_key(leaf):
    return eqx.default_deserialise_filter_spec(file, leaf)
  data = eqx.default_deserialise_filter_spec(file, jax.random.key_data(leaf))
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))


def _of_params(
  model: Any, loss_fn: Any, args: Any, kwargs: Any
) -> Callable[..., Any]:
  """Returns the loss of the model from its parameters and a batch."""
  try:
    # A state of Equinox that is unflattened again may be used once more.
    leaves, tree = jax.tree.flatten((args, kwargs))
  except ValueError as error:
    msg = (
      f'equinox_value_fn must be called before the first pass, with the state '
      f'that the model has then, got one that cannot be used again: {error}'
    )
    raise ValueError(msg) from error
  structure = _structure(model)

  def value_fn(params: optax.Params, *batch: Any) -> Any:
    if _structure(params) != structure:
      msg = (
        'params must have the structure of the model that equinox_value_fn '
        'got: write eqx.filter(model, eqx.is_inexact_array).'
      )
      raise ValueError(msg)
    args, kwargs = jax.tree.unflatten(tree, leaves)
    found = loss_fn(eqx.combine(params, model), *batch, *args, **kwargs)
    return found[0] if isinstance(found, tuple) else found

  return value_fn


def _structure(tree: Any) -> Any:
  return jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None)


def _is_key(leaf: Any) -> bool:
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
