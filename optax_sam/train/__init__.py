"""The trainer: compares sharpness-aware methods, command `optax-sam`.

`optax_sam.train.compare` compares them on your model and your data.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from optax_sam.train.comparison.api import compare
  from optax_sam.train.reports.results import Comparison

__all__ = ['Comparison', 'compare']

_MODULES = {'compare': 'comparison.api', 'Comparison': 'reports.results'}


def __getattr__(name: str) -> Any:
  # The trainer needs libraries that the rest of the package does without.
  if name not in _MODULES:
    msg = f'module {__name__!r} has no attribute {name!r}'
    raise AttributeError(msg)
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return getattr(module, name)
