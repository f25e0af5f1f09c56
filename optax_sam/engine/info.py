"""Counters and metrics of a method, and how to read them from a state."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.trees import tree_math


class SharpnessAwareInfo(NamedTuple):
  """Metrics of the last steps, for logs; equal on all devices.

  Attributes:
    ascended: whether the last step took an ascent step, a scalar bool.
    decided: whether the policy decided to take one, a scalar bool; it equals
      `ascended`, unless the caller chose the branch with `ascend`.
    second_gradients: number of steps so far with a perturbed gradient, int32.
    ascent_norm: norm of the ascent gradient at the last such step, a scalar; 0
      before the first.
    perturbed_loss: loss at the perturbed parameters at that step, a scalar; 0
      if it isn't known, as with a `grad_fn` that returns no loss.
  """

  ascended: jax.Array
  decided: jax.Array
  second_gradients: jax.Array
  ascent_norm: jax.Array
  perturbed_loss: jax.Array


class SharpnessAwareState(NamedTuple):
  """State of `sharpness_aware`.

  Attributes:
    step_count: number of steps so far, a scalar int32.
    perturbation: state of the perturbation.
    policy: state of the policy.
    descent: state of the combination rule.
    selection: state of the batch selection.
    info: metrics of the last steps.
  """

  step_count: jax.Array
  perturbation: Any
  policy: Any
  descent: Any
  selection: Any
  info: SharpnessAwareInfo


def no_state(params: optax.Params) -> optax.EmptyState:
  """Returns the state of a stateless component."""
  del params
  return optax.EmptyState()


def first_state(params: optax.Params) -> SharpnessAwareState:
  """Returns the state before the first step, of floating-point leaves."""
  scalar = jnp.zeros((), tree_math.accumulator_dtype(params))
  return SharpnessAwareState(
    step_count=jnp.zeros((), jnp.int32),
    perturbation=optax.EmptyState(),
    policy=optax.EmptyState(),
    descent=optax.EmptyState(),
    selection=optax.EmptyState(),
    info=SharpnessAwareInfo(
      ascended=jnp.zeros((), bool),
      decided=jnp.zeros((), bool),
      second_gradients=jnp.zeros((), jnp.int32),
      ascent_norm=scalar,
      # A separate buffer: the same one can't be donated twice.
      perturbed_loss=jnp.zeros_like(scalar),
    ),
  )


def advance(
  state: SharpnessAwareState,
  ascent_norm: jax.Array,
  perturbed_loss: jax.Array | None,
  *,
  ascended: Any = True,
  decided: Any = True,
) -> SharpnessAwareState:
  """Counts a step, and records its metrics, averaged over the devices."""
  last = state.info
  if perturbed_loss is None:
    perturbed_loss = last.perturbed_loss
  ascended = jnp.asarray(ascended)
  return state._replace(
    step_count=tree_math.increment(state.step_count),
    info=SharpnessAwareInfo(
      ascended=ascended,
      # A separate buffer: the same one can't be donated twice.
      decided=jnp.asarray(decided).copy(),
      second_gradients=jnp.where(
        ascended,
        tree_math.increment(last.second_gradients),
        last.second_gradients,
      ),
      # With its dtype: a Python number would make the state weakly typed.
      ascent_norm=jnp.asarray(ascent_norm, last.ascent_norm.dtype),
      perturbed_loss=jnp.asarray(perturbed_loss, last.perturbed_loss.dtype),
    ),
  )


_ARRAYS = (jax.Array, np.ndarray, np.generic)


def metrics(opt_state: Any) -> dict[str, Any]:
  """Returns the metrics of the sharpness-aware method in an optimizer state.

  Args:
    opt_state: state of an optimizer with a method of this library in it, in a
      chain or wrapped; for an NNX optimizer write
      `metrics(nnx.as_pure(optimizer.opt_state))`.

  Returns:
    A flat dict of arrays of shape (): `step_count`, the fields of
    `SharpnessAwareInfo` (`ascended`, `decided`, `second_gradients`,
    `ascent_norm`, `perturbed_loss`), and the scalars in the states of the
    components, such as `policy/threshold` of `ae_sam` or `descent/ratio` of
    `look_sam`. Several methods are numbered: `0/step_count`, `1/step_count`.

  Raises:
    ValueError: if there is no method, or if its state contains no arrays.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax_sam.look_sam(), optax.sgd(0.1))
  >>> sorted(optax_sam.metrics(tx.init(jnp.ones(3))))
  ['ascended', 'ascent_norm', 'decided', 'descent/ratio', 'perturbed_loss',
  'policy/step_count', 'second_gradients', 'step_count']
  """
  found = states(opt_state, SharpnessAwareState)
  if not found:
    msg = (
      'opt_state must hold the state of a method of optax_sam, but has none: '
      'place one first in the chain, as in optax.chain(optax_sam.sam(), '
      'optax.sgd(0.1)).'
    )
    raise ValueError(msg)
  if not all(isinstance(state.step_count, _ARRAYS) for state in found):
    kind = type(found[0].step_count).__name__
    msg = (
      f'opt_state must hold arrays, got a {kind}: '
      f'for an NNX optimizer write metrics(nnx.as_pure(optimizer.opt_state)).'
    )
    raise ValueError(msg)
  if len(found) == 1:
    return _scalars(found[0])
  return {
    f'{position}/{name}': scalar
    for position, state in enumerate(found)
    for name, scalar in _scalars(state).items()
  }


def _scalars(state: SharpnessAwareState) -> dict[str, Any]:
  scalars = {'step_count': state.step_count, **state.info._asdict()}
  for choice in ('perturbation', 'policy', 'descent', 'selection'):
    scalars.update(_fields(getattr(state, choice), choice))
  return scalars


def _fields(state: Any, prefix: str) -> dict[str, Any]:
  """Returns the scalar fields of nested states, without leaves of trees."""
  if isinstance(state, _ARRAYS):
    is_key = jnp.issubdtype(state.dtype, jax.dtypes.prng_key)
    return {} if state.shape or is_key else {prefix: state}
  if hasattr(state, '_asdict'):
    children = state._asdict().items()
  elif isinstance(state, tuple):
    children = enumerate(state)
  else:
    return {}
  return {
    name: scalar
    for key, child in children
    for name, scalar in _fields(child, f'{prefix}/{key}').items()
  }


_PASS = (
  'pass the result of tx.init(params) or of the last tx.update of the same tx.'
)


def check_state(state: Any, kind: type) -> None:
  """Raises unless a state is of the class that `init` returns."""
  if not isinstance(state, kind):
    msg = (
      f'state must be a {kind.__name__}, got a {type(state).__name__}: {_PASS}'
    )
    raise ValueError(msg)


def check_components(state: SharpnessAwareState, wanted: Any) -> None:
  """Raises unless a state has the structure of the one that `init` returns."""
  differing = [
    name
    for name in state._fields
    if jax.tree.structure(getattr(state, name))
    != jax.tree.structure(getattr(wanted, name))
  ]
  if differing:
    msg = (
      f'state must be that of the same method for the same parameters, got one '
      f'with another {" and ".join(differing)}: {_PASS}'
    )
    raise ValueError(msg)


State = TypeVar('State')


def states(opt_state: Any, kind: type[State]) -> list[State]:
  """Returns all states of one class of named tuples, in order."""
  is_one = lambda node: isinstance(node, kind)
  nodes = jax.tree.leaves(opt_state, is_leaf=is_one)
  return [node for node in nodes if isinstance(node, kind)]


def only_state(opt_state: Any, kind: type[State], example: str) -> State:
  """Returns the one state of a class that an optimizer must hold."""
  found = states(opt_state, kind)
  if len(found) != 1:
    msg = (
      f'opt_state must hold one {kind.__name__}, but has {len(found)}: pass '
      f'the state of an optimizer such as {example}.'
    )
    raise ValueError(msg)
  return found[0]
