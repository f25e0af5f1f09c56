"""Models of the user: `package.module:Name` or `file.py:Name`."""

import functools
import importlib
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any

from flax import linen

from optax_sam.train.config import names
from optax_sam.train.models import functions

# Names of an argument for the number of outputs.
_OUTPUTS = r'(num_|n_)?(classes|outputs)|out_features|vocabulary|vocab_size'
# Fields of every linen module.
_OF_LINEN = ('parent', 'name')
# An argument of this name makes a constructor of NNX or Equinox.
_CONSTRUCTORS = ('rngs', 'key')


def build(reference: str, outputs: int) -> Any:
  """Imports a model, and passes it the number of outputs if it takes one.

  The reference is MODULE:NAME, where the module is in the current directory or
  installed, or FILE.py:NAME. Raises a ValueError in one line if it can't be
  imported or called.
  """
  flag = f'--model {reference}'
  module_name, _, name = reference.rpartition(':')
  if not module_name or not name:
    msg = f'{flag} must read package.module:Name or file.py:Name'
    raise ValueError(msg)
  found = _import(module_name, flag)
  if name not in found:
    public = [key for key in found if not key.startswith('_')]
    close = names.closest(name, public)
    advice = f'; did you mean {" or ".join(close)}?' if close else ''
    msg = f'{flag}: {module_name} has no {name}{advice}'
    raise ValueError(msg)
  return _with_outputs(found[name], outputs, flag)


def _import(name: str, flag: str) -> dict[str, Any]:
  """Returns what a module or a file defines."""
  path = pathlib.Path(name)
  is_file = path.suffix == '.py'
  directory = str((path.parent if is_file else pathlib.Path()).resolve())
  if directory not in sys.path:
    sys.path.insert(0, directory)
  try:
    if is_file:
      return runpy.run_path(str(path), run_name=f'_model_{path.stem}')
    return vars(importlib.import_module(name))
  except ModuleNotFoundError as error:
    missing = error.name or ''
    if not is_file and (name == missing or name.startswith(f'{missing}.')):
      why = f'there is no module {missing} in {directory} or installed'
    else:
      why = f'{name} imports {missing}, which is not installed'
    msg = f'{flag}: {why}'
    raise ValueError(msg) from error
  except FileNotFoundError:
    msg = f'{flag}: there is no file {path}'
    raise ValueError(msg) from None
  except (Exception, SystemExit) as error:
    msg = f'{flag}: importing {name} raises {_described(error)}'
    raise ValueError(msg) from error


def _with_outputs(model: Any, outputs: int, flag: str) -> Any:
  """Calls classes and factories; binds the number of outputs of others."""
  if not callable(model) or isinstance(model, linen.Module | tuple):
    return model
  try:
    parameters = dict(functions.parameters(model))
  except (TypeError, ValueError):
    return model
  if isinstance(model, type) and issubclass(model, linen.Module):
    parameters = {k: v for k, v in parameters.items() if k not in _OF_LINEN}
  required = functions.required(parameters, _CONSTRUCTORS)
  wanted = next((x for x in parameters if re.fullmatch(_OUTPUTS, x)), None)
  if wanted is None and len(required) == 1:
    wanted = required[0]
  others = [key for key in required if key != wanted]
  if others:
    msg = (
      f'{flag} needs the argument {others[0]!r}; name a function of the number '
      f'of classes that returns the model'
    )
    raise ValueError(msg)
  if wanted is not None:
    model = functools.partial(model, **{wanted: outputs})
  if any(key in parameters for key in _CONSTRUCTORS):
    return model
  try:
    return model()
  except Exception as error:
    msg = f'{flag} raises {_described(error)}'
    raise ValueError(msg) from error


def _described(error: BaseException) -> str:
  """Returns an error in one line, with the line of the code of the user."""
  text = ' '.join(str(error).split())[:200]
  line = ''
  if isinstance(error, SyntaxError):
    text, line = error.msg, f' in line {error.lineno}'
  elif error.__traceback__ is not None:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = f' in line {frame.lineno} of {pathlib.Path(frame.filename).name}'
  return f'{type(error).__name__}{line}: {text}'
