"""The base optimizer and its schedule."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from optax_sam.train.config import configs, names
from optax_sam.train.optimizers.registry import BASES

# `--set base.NAME=VALUE` sets an argument of the base optimizer.
PREFIX = 'base'
# These need a line search, a Hessian, an optimizer of their own or a key.
_NEED_MORE = frozenset({'lbfgs', 'sophia', 'galore', 'noisy_sgd'})
_DECAYS = ('weight_decay', 'weight_decay_rate')
_MASKS = ('mask', 'weight_decay_mask')


@functools.cache
def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Returns the optimizers of Optax that can be a base optimizer, by name.

  These are the functions that need a schedule of the learning rate, and
  nothing else that isn't a number. Optimizers that choose their learning rate
  themselves are not among them: all methods of a comparison share one schedule.
  """
  found: dict[str, Any] = {'sgd': optax.sgd, 'adamw': optax.adamw}
  for module in (optax, optax.contrib):
    for name, function in inspect.getmembers(module, _is_function):
      parameters = dict(inspect.signature(function).parameters)
      rate = parameters.pop('learning_rate', None)
      if (
        rate is not None
        and not name.startswith('scale_by')
        and name not in _NEED_MORE
        and rate.default in (inspect.Parameter.empty, None)
        and 'Callable' in str(rate.annotation)  # a schedule
        and all(x.default is not x.empty for x in parameters.values())
      ):
        found.setdefault(name, function)
  return found


def schedule(config: configs.Experiment) -> optax.Schedule:
  """Returns the learning-rate schedule: linear warm-up, then cosine decay."""
  highest = configs.learning_rate(config)
  # The peak may be traced, which this function of Optax does not accept.
  shape = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=1.0,
    # At least one step is left for the decay.
    warmup_steps=min(round(config.warmup * config.steps), config.steps - 1),
    decay_steps=config.steps,
  )
  return lambda count: highest * shape(count)


def base_optimizer(
  config: configs.Experiment, steps: int = 1
) -> optax.GradientTransformation:
  """Returns the base optimizer, by its name or by a function.

  Weight decay is decoupled if the optimizer has an argument for it, and on
  kernels only if it also has one for a mask. Otherwise it is added to the
  gradients, on kernels only. `--clip-norm` clips the gradients that it receives
  from a sharpness-aware method, which itself uses unclipped gradients.
  """
  of_training, parts = schedule(config), []
  if config.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  given: dict[str, Any] = {}
  function: Any = BASES.get(config.base)
  if function is None:
    function, given = optimizers()[config.base], _arguments(config)
    decay = configs.weight_decay(config)
    known = inspect.signature(function).parameters
    own = [key for key in _DECAYS if key in known]
    if own:
      given |= {own[0]: decay}
      given |= {key: _is_kernel for key in _MASKS if key in known}
    else:
      parts.append(optax.add_decayed_weights(decay, mask=_is_kernel))
  try:
    parts.append(function(lambda count: of_training(count // steps), **given))
  except (TypeError, ValueError, OverflowError) as error:
    msg = f'--base {config.base}: {error}'
    raise ValueError(msg) from error
  return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _arguments(config: configs.Experiment) -> dict[str, Any]:
  """Returns the arguments given by `--set base.NAME=VALUE`, and defaults."""
  given: dict[str, Any] = {'momentum': 0.9} if config.base == 'sgd' else {}
  parameters = inspect.signature(optimizers()[config.base]).parameters
  allowed = [name for name, one in parameters.items() if _is_settable(one)]
  for text in config.set:
    shown, target, name, written = names.split_assignment(text)
    if target != PREFIX:
      continue
    if name in ('learning_rate', 'weight_decay'):
      msg = f'--set {shown}: use --{name.replace("_", "-")} {written}'
      raise ValueError(msg)
    what = f'--set {shown}: argument of {config.base}'
    if not allowed:
      msg = f'{what} {name!r} is unknown; it has none'
      raise ValueError(msg)
    name = names.find(what, name, allowed)
    default = parameters[name].default
    if default is None:  # of a number that can be left out
      default = None if written == 'None' else 0.0
    given[name] = names.parse_value(shown, name, written, default)
  return given


def _is_function(value: Any) -> bool:
  return inspect.isfunction(value) or isinstance(value, functools.partial)


def _is_settable(parameter: inspect.Parameter) -> bool:
  name, default = parameter.name, parameter.default
  return (
    name not in ('learning_rate', 'seed', 'key', *_DECAYS)
    and not any(part in name for part in ('dtype', 'mask'))
    and 'Callable' not in str(parameter.annotation)
    and isinstance(default, bool | int | float | str | None)
  )


def _is_kernel(params: optax.Params) -> optax.Params:
  """Marks parameters with more than one axis: no biases, no batch norm."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
