"""Goes on with a comparison, from the settings that it has stored."""

import dataclasses
from typing import Any

import msgspec

from optax_sam.train.comparison import store
from optax_sam.train.config import configs, output_dir

# Flags that change neither the runs nor what is compared.
FREE = frozenset({'timing_rounds'})


@dataclasses.dataclass(frozen=True)
class Continuation:
  """A configuration with that of an earlier comparison in its output.

  Attributes:
    config: the configuration of the complete comparison.
    adding: seeds and methods that this command adds, ready for JSON; None if
      it adds none.
  """

  config: configs.CompareConfig
  adding: dict[str, Any] | None = None


def resolve(config: configs.CompareConfig) -> Continuation:
  """Returns the configuration with the settings of an earlier comparison.

  A command that gives only the output takes all settings from there. If what
  is added was interrupted, the same command goes on and adds no more.

  Args:
    config: the flags.

  Raises:
    ValueError: if something is added, and there is no earlier comparison or it
      has other settings.
  """
  seeds, methods = config.add_seeds, config.add_methods
  adding = {'seeds': seeds, 'methods': list(methods)}
  adds = bool(seeds or methods)
  former = None
  if config.output is not None:
    former = store.former_output(config.output, overwrite=config.overwrite)
  if former is None:
    if adds:
      where = config.output or 'an output'
      msg = (
        f'--add-seeds and --add-methods: there is no comparison in {where}; '
        f'run the first one without them'
      )
      raise ValueError(msg)
    return Continuation(config)
  stored = _as_config(former['settings'], config)
  plain = dataclasses.replace(config, add_seeds=0, add_methods=())
  given = config.set if methods else ()  # settings of the new methods
  if given:
    plain = dataclasses.replace(plain, set=())
  if plain == _with_flags(configs.CompareConfig(), config):
    plain = stored
  if not adds:
    return Continuation(plain)
  if plain != stored:
    _refuse(stored, plain)
  if adding != former.get('adding'):  # not the same command, interrupted
    stored = dataclasses.replace(
      stored,
      seeds=stored.seeds + seeds,
      methods=tuple(dict.fromkeys((*stored.methods, *methods))),
      set=tuple(dict.fromkeys((*stored.set, *given))),
    )
  return Continuation(stored, adding)


def _as_config(
  settings: dict[str, Any], config: configs.CompareConfig
) -> configs.CompareConfig:
  """Returns settings of config.json as a configuration, types checked."""
  try:
    stored = msgspec.convert(settings, configs.CompareConfig)
  except msgspec.ValidationError as error:
    msg = f'{config.output}/{output_dir.CONFIG} is damaged: {error}'
    raise ValueError(msg) from None
  return _with_flags(stored, config)


def _with_flags(
  settings: configs.CompareConfig, flags: configs.CompareConfig
) -> configs.CompareConfig:
  """Returns the settings of one configuration with all else of another."""
  taken = configs.settings(flags).keys() - FREE
  others = {
    field.name: getattr(flags, field.name)
    for field in dataclasses.fields(flags)
    if field.name not in taken
  }
  return dataclasses.replace(
    settings, **(others | {'add_seeds': 0, 'add_methods': ()})
  )


def _refuse(
  stored: configs.CompareConfig, given: configs.CompareConfig
) -> None:
  assert given.output is not None
  settings = configs.settings(stored), configs.settings(given)
  store.check_same(given.output, *settings, FREE)
