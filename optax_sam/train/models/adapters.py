"""Low-rank adapters for any model, whose own parameters are frozen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import lora
from optax_sam.train.models.functions import ModelFunctions, Statistics

# The collections of the adapters that descend, and of the second pair of
# Bi-LoRA, which is a perturbation and no part of the model after training.
TRAINED, SECOND = 'lora', 'second'
_FROZEN = 'frozen'


def adapted(
  model: ModelFunctions,
  rank: int,
  *,
  has_second_pair: bool = False,
  noise: Callable[..., Any] | None = None,
) -> ModelFunctions:
  """Returns the same model, of which only low-rank adapters are parameters.

  Every array with at least two axes has adapters. It is read as a matrix whose
  columns are the last axis, the outputs in Flax. All parameters of the model
  are frozen and belong to the statistics. The adapters start at 0: `a` as in
  `flax.nnx.LoRA`, `b` with zeros. Their scale is 1.

  Args:
    model: the model; its `init` returns the weights to fine-tune.
    rank: largest rank of the adapters.
    has_second_pair: whether there is a second pair of adapters, in training
      mode only.
    noise: from merged kernels, a key and the number of the step, to noise that
      is added to them in training mode.

  Raises:
    ValueError: if there is noise and kernels have the outputs on another axis.
  """
  if noise is not None and not model.outputs_last:
    msg = (
      f'Flat-LoRA scales its noise by the outputs, the last axis of kernels, '
      f'which is the inputs in the Equinox module {model.name}; leave '
      f'flat_noise out, or call optax_sam.lora.flat_noise in your own program'
    )
    raise ValueError(msg)
  names = (TRAINED, SECOND) if has_second_pair else (TRAINED,)

  def init(key: jax.Array, example: Any) -> tuple[optax.Params, Statistics]:
    weights, statistics = model.init(key, example)
    params = {
      name: new(weights, jax.random.fold_in(key, place), rank)
      for place, name in enumerate(names, start=1)
    }
    own = {'weights': weights, 'step': jnp.zeros((), jnp.int32)}
    return params, {**statistics, _FROZEN: own}

  def apply(
    params: Any, statistics: Statistics, inputs: Any, *, train: bool, key: Any
  ) -> tuple[Any, Statistics]:
    rest = dict(statistics)
    own = rest.pop(_FROZEN)
    weights = own['weights']
    for name in names if train else (TRAINED,):
      weights = merged(weights, params[name])
    if train and noise is not None:
      drawn = noise(weights, key, own['step'])
      weights = jax.tree.map(jnp.add, weights, drawn)
    outputs, rest = model.apply(weights, rest, inputs, train=train, key=key)
    own = {**own, 'step': own['step'] + train}
    return outputs, {**rest, _FROZEN: own}

  return ModelFunctions(init, apply, model.name)


def new(weights: Any, key: jax.Array, rank: int) -> Any:
  """Returns new adapters of all arrays of a tree; a vector has None."""
  leaves, tree = jax.tree.flatten(weights)
  pairs = []
  for number, kernel in enumerate(leaves):
    if kernel.ndim < 2:
      pairs.append(None)
      continue
    inputs, outputs = kernel.size // kernel.shape[-1], kernel.shape[-1]
    size = min(rank, inputs, outputs)
    draw = jax.random.fold_in(key, number)
    a = jax.nn.initializers.he_uniform()(draw, (inputs, size), kernel.dtype)
    pairs.append({'a': a, 'b': jnp.zeros((size, outputs), kernel.dtype)})
  return tree.unflatten(pairs)


def merged(weights: Any, pairs: Any) -> Any:
  """Returns weights with the products of their adapters added."""

  def of_leaf(kernel: jax.Array, pair: dict[str, jax.Array] | None) -> Any:
    if pair is None:
      return kernel
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return lora.merge(matrix, pair['a'], pair['b']).reshape(kernel.shape)

  return jax.tree.map(of_leaf, weights, pairs)
