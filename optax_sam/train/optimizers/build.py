"""Methods by name: their settings and optimizers."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optax

import optax_sam
from optax_sam import catalog
from optax_sam.train.config import assignment, configs
from optax_sam.train.config import names as names_lib
from optax_sam.train.optimizers import accuracy_schedule
from optax_sam.train.optimizers import base_optimizer as base_optimizer_lib
from optax_sam.train.optimizers.base_optimizer import base_optimizer, schedule
from optax_sam.train.optimizers.registry import METHODS, Method
from optax_sam.train.optimizers.weight_averaging import ValidatedAveraging

# Arguments that the trainer sets, or that describe devices, not the method.
_NOT_SETTABLE = frozenset(
  {'base', 'batch_like', 'num_data', 'total_steps', 'key', 'refresh_every'}
  | {'mask', 'axis_name', 'sync_ascent', 'scaled'}
)
_BASE = Method(
  dataclasses.replace(catalog.METHODS['sam'], group='every step', needs=''),
  optax.identity,
)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(METHODS[name].factory).parameters


def settable(name: str) -> tuple[str, ...]:
  """Returns the names that `--set NAME.setting=value` accepts."""
  filled = set(_NOT_SETTABLE)
  if METHODS[name].row.place != 'replaces':
    filled.add('learning_rate')
  return tuple(key for key in _parameters(name) if key not in filled)


def check_names(names: Iterable[str], base: str) -> None:
  """Raises a ValueError if a name is neither a method nor the base."""
  for name in names:
    if name != base and name not in METHODS:
      canonical_name(name, base, 'method')
      msg = f'method {name!r} is unknown; write {base} or a name of the catalog'
      raise ValueError(msg)


def canonical_name(name: str, base: str, what: str) -> str:
  """Returns the name of a method, or of the base optimizer."""
  optimizers = base_optimizer_lib.optimizers()
  if name.lower() in optimizers and name.lower() not in (base, *METHODS):
    msg = f'{what} {name!r} is a base optimizer; write --base {name.lower()}'
    raise ValueError(msg)
  titles = {key: method.row.title for key, method in METHODS.items()}
  return names_lib.find(
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
  assignments: Iterable[str], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
  """Reads assignments such as `ae_sam.lambda_2=2`."""
  parsed: dict[str, dict[str, Any]] = {
    name: {} for name in names if name in METHODS
  }
  for one in assignments:
    text, name, setting, written = assignment.split(one)
    if name == base_optimizer_lib.PREFIX:  # read by `base_optimizer`
      continue
    if name not in parsed:
      try:
        name = names_lib.find('', name, parsed)
      except ValueError:
        allowed = ', '.join((*parsed, base_optimizer_lib.PREFIX))
        msg = (
          f'--set {text}: {name!r} is not a method of this run; choose one of '
          f'{allowed}'
        )
        raise ValueError(msg) from None
    what = f'--set {text}: setting of {name}'
    setting = names_lib.find(what, setting, settable(name))
    default = complete_settings(name, {}, None).get(setting)
    value = assignment.value(text, setting, written, default)
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
  row, parameters = METHODS[name].row, _parameters(name)
  chosen: dict[str, Any] = {
    key: row.example.get(key)
    if parameters[key].default is inspect.Parameter.empty
    else parameters[key].default
    for key in settable(name)
  }
  chosen |= METHODS[name].defaults
  if rho is not None and 'rho' in chosen:
    chosen['rho'] = rho
  return {**chosen, **given}


def optimizer(
  name: str,
  settings: Mapping[str, Any],
  config: configs.Experiment,
  *,
  seed: int,
  epoch_steps: int = 1,
  accuracy: float = 0.0,
  batch_like: Any = None,
  num_data: int = 1,
) -> optax.GradientTransformation:
  """Returns the optimizer of a method, or the base optimizer alone."""
  if 'learning_rate' in settings:
    rate = settings['learning_rate']
    config = dataclasses.replace(config, learning_rate=rate)
  if name not in METHODS:
    return optax.chain(optax.identity(), base_optimizer(config))
  own, parameters = METHODS[name], _parameters(name)
  base_steps = settings[own.base_steps] if own.base_steps else 1
  base = base_optimizer(config, base_steps)
  filled = {
    'total_steps': config.steps,
    'refresh_every': epoch_steps,
    'key': seed,
    'base': base,
    'batch_like': batch_like,
    'num_data': num_data,
  }
  arguments = {k: v for k, v in filled.items() if k in parameters}
  arguments |= _arguments(name, settings)
  arguments |= accuracy_schedule.following(settings, accuracy)
  if 'learning_rate' in parameters:
    highest = settings.get('learning_rate')
    arguments['learning_rate'] = schedule(config, highest)
  try:
    built = own.factory(**arguments)
  except (TypeError, ValueError, OverflowError) as error:
    msg = f'{name}: {error}'
    raise ValueError(msg) from error
  match own.row.place:
    case 'chain':
      return optax.chain(built, base)
    case 'after':
      return optax.chain(base, built)
    case 'loss' | 'outside':
      return optax.chain(optax.identity(), base)
    case _:
      return built


def auxiliary_loss(
  name: str, settings: Mapping[str, Any]
) -> optax_sam.SafLoss | optax_sam.MesaLoss | None:
  """Returns the auxiliary loss that a method is, None for other methods."""
  return _placed('loss', name, settings)


def averaging(
  name: str, settings: Mapping[str, Any]
) -> ValidatedAveraging | None:
  """Returns the external average that a method is, None for other methods."""
  return _placed('outside', name, settings)


def method(name: str) -> Method:
  """Returns the description of a method, or that of a base optimizer."""
  return METHODS.get(name, _BASE)


def _placed(place: str, name: str, settings: Mapping[str, Any]) -> Any:
  if name not in METHODS or METHODS[name].row.place != place:
    return None
  return METHODS[name].factory(**_arguments(name, settings))


def _arguments(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings without the learning rate of the base optimizer."""
  known = _parameters(name)
  return {
    key: value
    for key, value in settings.items()
    if key != 'learning_rate' or key in known
  }
