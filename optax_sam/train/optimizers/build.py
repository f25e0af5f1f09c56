"""Methods by name: their settings and optimizers."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_sam import catalog
from optax_sam.train.config import configs, names
from optax_sam.train.optimizers import base_optimizer as base_optimizer_lib
from optax_sam.train.optimizers.base_optimizer import base_optimizer, schedule
from optax_sam.train.optimizers.registry import METHODS, Method

# Arguments that the trainer sets, or that describe devices, not the method.
_NOT_SETTABLE = frozenset(
  {'base', 'batch_like', 'num_data', 'total_steps', 'key', 'refresh_every'}
  | {'mask', 'axis_name', 'sync_ascent', 'scaled'}
)
_ONE_NUMBER = jax.ShapeDtypeStruct((1,), np.float32)
_BASE = Method(
  dataclasses.replace(catalog.METHODS['sam'], group='every step', needs=''),
  optax.identity,
)


def method(name: str) -> Method:
  """Returns the description of a method, or that of a base optimizer."""
  return METHODS.get(name, _BASE)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(METHODS[name].factory).parameters


def settable(name: str) -> tuple[str, ...]:
  """Returns the names that `--set NAME.setting=value` accepts."""
  filled = set(_NOT_SETTABLE)
  if METHODS[name].row.place != 'replaces':
    filled.add('learning_rate')
  return tuple(key for key in _parameters(name) if key not in filled)


def canonical_name(name: str, base: str, what: str) -> str:
  """Returns the name of a method, or of the base optimizer."""
  optimizers = base_optimizer_lib.optimizers()
  if name.lower() in optimizers and name.lower() not in (base, *METHODS):
    msg = f'{what} {name!r} is a base optimizer; write --base {name.lower()}'
    raise ValueError(msg)
  titles = {key: one.row.title for key, one in METHODS.items()}
  return names.find(
    what,
    name,
    (base, *METHODS),
    aliases={  # also the parts of a title such as 'Friendly SAM (F-SAM)'
      key: [title, *title.rstrip(')').split(' (')]
      for key, title in titles.items()
    },
    hint='`optax-sam methods` lists all',
  )


def parse_settings(
  assignments: Iterable[str], methods: Iterable[str]
) -> dict[str, dict[str, Any]]:
  """Reads assignments such as `ae_sam.lambda_2=2`."""
  parsed: dict[str, dict[str, Any]] = {x: {} for x in methods if x in METHODS}
  for one in assignments:
    text, name, setting, written = names.split_assignment(one)
    if name == base_optimizer_lib.PREFIX:  # read by `base_optimizer`
      continue
    if name not in parsed:
      try:
        name = names.find('', name, parsed)
      except ValueError:
        allowed = ', '.join((*parsed, base_optimizer_lib.PREFIX))
        msg = (
          f'--set {text}: {name!r} is not a method of this run; choose one of '
          f'{allowed}'
        )
        raise ValueError(msg) from None
    what = f'--set {text}: setting of {name}'
    # A method may have a learning rate of its own, a float.
    known = dict.fromkeys((*settable(name), 'learning_rate'))
    setting = names.find(what, setting, known)
    default = complete_settings(name, {}, None).get(setting, 1.0)
    value = names.parse_value(text, setting, written, default)
    if setting == METHODS[name].row.radius and not np.float32(value) > 0:
      msg = f'--set {text}: {setting} must be above 0, not {written}'
      raise ValueError(msg)
    parsed[name][setting] = value
  return parsed


def complete_settings(
  name: str, given: Mapping[str, Any], rho: float | None
) -> dict[str, Any]:
  """Returns all settings of a method: given ones, --rho, then defaults."""
  if name not in METHODS:
    return {}
  example, parameters = METHODS[name].row.example, _parameters(name)
  chosen = {
    key: example.get(key) if default is inspect.Parameter.empty else default
    for key in settable(name)
    for default in [parameters[key].default]
  }
  if rho is not None and 'rho' in chosen:
    chosen['rho'] = rho
  return {**chosen, **given}


def method_settings(
  names: Sequence[str], config: configs.Experiment
) -> dict[str, dict[str, Any]]:
  """Returns the complete settings of methods, after building each once."""
  given = parse_settings(config.set, names)
  settings = {
    name: complete_settings(name, given.get(name, {}), config.rho)
    for name in names
  }
  for name in names:
    optimizer(name, settings[name], config, seed=0)
  return settings


def optimizer(
  name: str,
  settings: Mapping[str, Any],
  config: configs.Experiment,
  *,
  seed: int,
  epoch_steps: int = 1,
  batch_like: Any = _ONE_NUMBER,
  num_data: int = 1,
) -> optax.GradientTransformation:
  """Returns the optimizer of a method, or the base optimizer alone."""
  if 'learning_rate' in settings:
    rate = settings['learning_rate']
    config = dataclasses.replace(config, learning_rate=rate)
  if name not in METHODS:
    return optax.chain(optax.identity(), base_optimizer(config))
  own, parameters = METHODS[name], _parameters(name)
  if own.needs_adapters and config.adapter_rank is None:
    msg = f'{name} trains low-rank adapters; add --adapter-rank, such as 8'
    raise ValueError(msg)
  base = base_optimizer(
    config, settings[own.base_steps] if own.base_steps else 1
  )
  filled = {
    'total_steps': config.steps,
    'refresh_every': epoch_steps,
    'key': seed,
    'base': base,
    'batch_like': batch_like,
    'num_data': num_data,
    **settings,
  }
  if 'learning_rate' in parameters:
    filled['learning_rate'] = schedule(config)
  built = _built(name, filled)
  match own.row.place:
    case 'chain':
      return optax.chain(built, base)
    case 'after':
      return optax.chain(base, built)
    case 'loss' | 'outside':
      return optax.chain(optax.identity(), base)
    case _:
      return built


def external(name: str, settings: Mapping[str, Any]) -> Any:
  """Returns the auxiliary loss, noise or average that a method is, or None."""
  if method(name).row.is_transformation:
    return None
  return _built(name, settings)


def _built(name: str, given: Mapping[str, Any]) -> Any:
  """Calls the function of a method with those arguments that it has."""
  known = _parameters(name)
  try:
    return METHODS[name].factory(
      **{k: x for k, x in given.items() if k in known}
    )
  except (TypeError, ValueError, OverflowError) as error:
    msg = f'{name}: {error}'
    raise ValueError(msg) from error
