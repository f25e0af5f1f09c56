"""Policies: is the second gradient taken at this step?

A policy is a pair of functions. `init(params)` returns its state, and
`decide(grads, state)` returns whether this step ascends, and the next state;
it sees the whole clean gradient, averaged over the devices and before any
mask. A Python `True` says that every step ascends, so that no conditional is
compiled at all. Pass one as `policy` to `optax_sam.sharpness_aware`.
"""

from optax_sam.policies.by_gradient import (
  SharpGradientsState,
  on_sharp_gradients,
)
from optax_sam.policies.by_step import (
  AfterState,
  BernoulliState,
  EveryState,
  after,
  always,
  bernoulli,
  every,
)
from optax_sam.policies.policy import Policy

__all__ = [
  'AfterState',
  'BernoulliState',
  'EveryState',
  'Policy',
  'SharpGradientsState',
  'after',
  'always',
  'bernoulli',
  'every',
  'on_sharp_gradients',
]
