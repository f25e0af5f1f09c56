"""Models as two functions: `init` and `apply`."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx, traverse_util

from optax_sam.engine.partition import path_parts

Statistics = dict[str, Any]

# Arguments of `__call__`, and whether they are true in training.
_MODES = {
  **dict.fromkeys(('train', 'training', 'is_training'), True),
  **dict.fromkeys(('deterministic', 'use_running_average', 'inference'), False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFunctions:
  """A model of any framework.

  `init` maps a key and a batch of one example to parameters and statistics, two
  pytrees. Statistics are a dict: what a pass in training mode updates, such as
  running means. `apply` maps (parameters, statistics, inputs) and the keywords
  `train` and `key` to outputs and the next statistics. `key` is for dropout; it
  may be None in evaluation. `outputs_last` is false if kernels have the outputs
  on another axis than the last one.
  """

  init: Callable[[jax.Array, Any], tuple[optax.Params, Statistics]]
  apply: Callable[..., tuple[Any, Statistics]]
  name: str = 'model'
  outputs_last: bool = True


def from_model(model: Any) -> ModelFunctions:
  """Returns the functions of a model; raises a ValueError for anything else.

  A model is one of

  - a Flax linen module. If its `__call__` has an argument `train`, `training`,
    `is_training`, `deterministic` or `use_running_average`, it gets the mode.
    Dropout gets the stream `dropout`.
  - a function or class `rngs -> nnx.Module`. Training and evaluation mode are
    those of `Module.train()` and `Module.eval()`. Every variable that is no
    `nnx.Param` and no random state belongs to the statistics.
  - a function or class `key -> equinox.Module`, or `key -> (module,
    equinox.nn.State)`, as `equinox.nn.make_with_state(Net)` returns it. It is
    called with one example, under `jax.vmap(axis_name='batch')`, with a `key`
    if `__call__` has this argument.
  - a pair `(init, apply)`: `init(key, inputs) -> params` and `apply(params,
    inputs) -> outputs`, both on batches. If `apply` has the argument `train`,
    it gets the mode; if it has `key`, it gets a key in training and None in
    evaluation.
  """
  if isinstance(model, ModelFunctions):
    return model
  if isinstance(model, linen.Module):
    return _from_linen(model)
  parts = model if isinstance(model, tuple) else (model,)
  equinox: Any = sys.modules.get('equinox')
  is_equinox = equinox is not None and isinstance(parts[0], equinox.Module)
  kind = type(parts[0]).__name__
  problem = ''
  if is_equinox or isinstance(parts[0], nnx.Module):
    given = 'key' if is_equinox else 'rngs'
    problem = (
      f'a function from {given} to the module, because every seed has its own, '
      f'not an instance: write lambda {given}: {kind}(..., {given}={given})'
    )
  elif len(parts) == 2 and all(map(callable, parts)):
    return _from_pair(*parts)
  elif isinstance(model, type) and issubclass(model, linen.Module):
    name = model.__name__
    problem = f'a linen module, not the class {name}: write {name}()'
  elif not callable(model):
    problem = (
      f'a linen module, a function of rngs (NNX) or of key (Equinox), or a '
      f'pair (init, apply), not {type(model).__name__}'
    )
  if problem:
    msg = f'model must be {problem}'
    raise ValueError(msg)
  return _from_constructor(model)


def _from_linen(module: linen.Module) -> ModelFunctions:
  mode = _mode(type(module).__call__)

  def init(key: jax.Array, example: Any) -> tuple[optax.Params, Statistics]:
    variables = dict(module.init(key, example, **mode(False)))
    return variables.pop('params', {}), variables

  def apply(
    params: Any, statistics: Statistics, inputs: Any, *, train: bool, key: Any
  ) -> tuple[Any, Statistics]:
    outputs, after = module.apply(
      {'params': params, **statistics},
      inputs,
      **mode(train),
      rngs={'dropout': key} if train else None,
      mutable=list(statistics),
    )
    return outputs, dict(after) if train else statistics

  return ModelFunctions(init, apply, type(module).__name__)


def _from_pair(
  init: Callable[..., Any], apply: Callable[..., Any]
) -> ModelFunctions:
  mode = _mode(apply)
  takes_key = 'key' in inspect.signature(apply).parameters

  def call(
    params: Any, statistics: Statistics, inputs: Any, *, train: bool, key: Any
  ) -> tuple[Any, Statistics]:
    given = {'key': key if train else None} if takes_key else {}
    return apply(params, inputs, **mode(train), **given), statistics

  name = getattr(apply, '__name__', 'apply')
  return ModelFunctions(lambda *given: (init(*given), {}), call, name)


def _from_nnx(build: Callable[..., Any], abstract: Any) -> ModelFunctions:
  """Splits a module into parameters and statistics, without random states."""

  def split(module: Any) -> tuple[Any, ...]:
    nnx.pop(module, nnx.Intermediate)
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, random, rest = map(nnx.to_pure_dict, states)
    return graph, params, random, {'state': rest} if rest else {}

  mode = _mode(type(abstract).__call__)
  graphs = {}
  for train in (True, False):
    abstract.train() if train else abstract.eval()
    graphs[train], _, random, _ = split(abstract)

  init = lambda key, _: split(build(rngs=nnx.Rngs(key)))[1::2]

  def apply(
    params: Any, statistics: Statistics, inputs: Any, *, train: bool, key: Any
  ) -> tuple[Any, Statistics]:
    streams = _seeded(random, key if train else jax.random.key(0))
    rest = statistics.get('state', {})
    module = nnx.merge(graphs[train], params, streams, rest)
    outputs = module(inputs, **mode(train))
    return outputs, split(module)[3] if train else statistics

  return ModelFunctions(init, apply, type(abstract).__name__)


def _seeded(random: Any, key: jax.Array) -> Any:
  """Returns random states with keys that depend on `key`, and counts of 0."""
  leaves, tree = jax.tree.flatten(random)
  return tree.unflatten(
    jax.random.split(jax.random.fold_in(key, number), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else jnp.zeros(leaf.shape, leaf.dtype)
    for number, leaf in enumerate(leaves)
  )


def _from_equinox(build: Callable[..., Any], abstract: Any) -> ModelFunctions:
  """Splits a module, and its state, into parameters and statistics.

  Parameters are a dict by path, not a module, because modules of two calls of
  the constructor need not have the same structure.
  """
  import equinox as eqx

  stateful = isinstance(abstract, tuple)
  module = abstract[0] if stateful else abstract
  call = type(module).__call__
  mode, takes_key = _mode(call), 'key' in inspect.signature(call).parameters
  found, tree = jax.tree_util.tree_flatten_with_path(abstract)

  def name_of(path: Any, leaf: Any) -> tuple[str, ...] | None:
    """Returns that of a parameter, () for other arrays, else None."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      return None
    is_state = stateful and path[0].idx
    if is_state or not jnp.issubdtype(leaf.dtype, jnp.inexact):
      return ()
    return tuple(path_parts(path[stateful:]))

  names = [name_of(*leaf) for leaf in found]

  def others(leaves: list[Any]) -> list[Any]:
    return [x for name, x in zip(names, leaves, strict=True) if name == ()]

  def init(key: jax.Array, example: Any) -> tuple[optax.Params, Statistics]:
    del example
    leaves = jax.tree.leaves(build(key=key))
    named = {x: leaf for x, leaf in zip(names, leaves, strict=True) if x}
    rest = others(leaves)
    return traverse_util.unflatten_dict(named), {'state': rest} if rest else {}

  def apply(
    params: Any, statistics: Statistics, inputs: Any, *, train: bool, key: Any
  ) -> tuple[Any, Statistics]:
    named = traverse_util.flatten_dict(params)
    rest = iter(statistics.get('state', ()))
    # New objects, since a state of Equinox can be used only once.
    built = tree.unflatten(
      leaf if name is None else named[name] if name else next(rest)
      for name, (_, leaf) in zip(names, found, strict=True)
    )
    module, *state = built if stateful else (built,)
    if not train:
      module = eqx.nn.inference_mode(module)

    def of_example(values: Any, key: jax.Array) -> Any:
      given = {'key': key} if takes_key else {}
      outputs = module(values, *state, **mode(train), **given)
      return outputs if stateful else (outputs, None)

    keys = jax.random.split(key if train else jax.random.key(0), len(inputs))
    outputs, after = jax.vmap(
      of_example, axis_name='batch', out_axes=(0, None)
    )(inputs, keys)
    if stateful and train:
      statistics = {'state': others(jax.tree.leaves((module, after)))}
    return outputs, statistics

  kind = type(module).__name__
  return ModelFunctions(init, apply, kind, outputs_last=False)


def _from_constructor(build: Callable[..., Any]) -> ModelFunctions:
  taken = parameters(build)
  given = next((name for name in ('rngs', 'key') if name in taken), '')
  kinds = {parameter.kind for parameter in taken.values()}
  if not given and inspect.Parameter.VAR_KEYWORD in kinds:
    given = 'key'  # the function of equinox.nn.make_with_state
  title = getattr(build, '__name__', 'constructor')
  missing = required(taken, (given,))
  if not given or missing:
    needed = ''.join(f'{name}=..., ' for name in missing)
    msg = (
      f'model must be a function of rngs (NNX) or of key (Equinox) only, and '
      f'{title} takes {", ".join(taken) or "nothing"}: write lambda rngs: '
      f'{title}({needed}rngs=rngs), or the same with key'
    )
    raise ValueError(msg)
  if given == 'rngs':
    abstract: Any = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    from_abstract, kind = _from_nnx, 'an nnx.Module'
    is_valid = isinstance(abstract, nnx.Module)
  else:
    import equinox as eqx

    abstract = eqx.filter_eval_shape(build, key=jax.random.key(0))
    pair = abstract if isinstance(abstract, tuple) else (abstract,)
    from_abstract = _from_equinox
    kind = 'an equinox.Module, or (module, equinox.nn.State)'
    types = (eqx.Module, eqx.nn.State)
    is_valid = len(pair) <= 2 and all(map(isinstance, pair, types))
  if not is_valid:
    found = type(abstract).__name__
    msg = f'model: {title}({given}=...) must return {kind}, not {found}'
    raise ValueError(msg)
  return from_abstract(build, abstract)


def parameters(build: Any) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of a function, a class or a partial of them."""
  if isinstance(build, functools.partial):
    rest = list(parameters(build.func).items())[len(build.args) :]
    return {k: p for k, p in rest if k not in build.keywords}
  if isinstance(build, type):  # the metaclass of a module hides the signature
    found = inspect.signature(build.__init__).parameters
    return dict(list(found.items())[1:])
  return inspect.signature(build).parameters


def required(
  found: Mapping[str, inspect.Parameter], others: Sequence[str]
) -> list[str]:
  """Returns the names of parameters that must be given, without `others`."""
  return [
    name
    for name, parameter in found.items()
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    and name not in others
  ]


def _mode(call: Callable[..., Any]) -> Callable[[bool], dict[str, Any]]:
  """Returns the arguments of a call, in training and in evaluation."""
  taken = inspect.signature(call).parameters
  found = {name: value for name, value in _MODES.items() if name in taken}
  return lambda train: {name: train == value for name, value in found.items()}
