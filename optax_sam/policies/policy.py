"""What a policy is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax


class Policy(NamedTuple):
  """Decides at which steps the second gradient is taken.

  Attributes:
    init: from the parameters to the state of the policy, a pytree of arrays.
    decide: from the clean gradient and the state to (ascend, new state), where
      `ascend` is a Python bool or a scalar bool array, the same on all
      devices.
    reads_gradient: whether `decide` looks at the gradient, which then has to
      be averaged over the devices first; by default it may.
  """

  init: Callable[[optax.Params], Any]
  decide: Callable[[optax.Updates, Any], tuple[Any, Any]]
  reads_gradient: bool = True
