"""The training problem of the contracts, and its steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import compiling
from tests.contracts import table

NUM_EXAMPLES = 8


def params(dtype: Any = jnp.float32) -> optax.Params:
  """Returns the parameters of a dense layer and of a scale after it."""
  numbers = np.sin(np.arange(1, 13))
  return {
    'dense': {
      'bias': jnp.asarray(0.1 * numbers[:2], dtype),
      'kernel': jnp.asarray(numbers[2:8].reshape(3, 2), dtype),
    },
    'norm': {'scale': jnp.asarray(1 + 0.1 * numbers[8:10], dtype)},
  }


def batch(step: int = 0) -> dict[str, jax.Array]:
  """Returns the batch of a step; all differ."""
  numbers = np.sin(np.arange(NUM_EXAMPLES * 5) * 1.7 + step)
  x, y = np.split(numbers.reshape(NUM_EXAMPLES, 5), [3], axis=1)
  return {
    'weight': jnp.ones(NUM_EXAMPLES, jnp.float32),
    'x': jnp.asarray(x, jnp.float32),
    'y': jnp.asarray(y, jnp.float32),
  }


def spoilt(step: int, bad: float = np.nan) -> dict[str, jax.Array]:
  """Returns the batch of a step with a non-finite label."""
  found = batch(step)
  return {**found, 'y': found['y'].at[:, 1].set(bad)}


def losses(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the weighted per-example squared errors."""
  batch = jax.tree.map(
    lambda leaf: leaf.astype(params['norm']['scale'].dtype), batch
  )
  kernel, bias = params['dense']['kernel'], params['dense']['bias']
  scale = params['norm']['scale']
  hidden = jnp.tanh(batch['x'] @ kernel + bias[None])
  error = hidden * scale[None] - batch['y']
  return batch['weight'] * jnp.sum(jnp.square(error), axis=1)


def loss(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the mean squared error."""
  return jnp.mean(losses(params, batch))


gradient = jax.jit(jax.grad(loss))


def functions(batch: Any, losses: Callable[..., Any] = losses) -> dict:
  """Returns the extra arguments of `update`."""
  return {
    'value_fn': lambda p: jnp.mean(losses(p, batch)),
    'per_example_value_fn': losses,
    'batch': batch,
  }


def training_step(
  tx: optax.GradientTransformation, losses: Callable[..., Any] = losses
) -> Callable[..., tuple[optax.Params, optax.OptState]]:
  """Returns the training step of every method."""

  def step(
    params: optax.Params, opt_state: optax.OptState, batch: Any
  ) -> tuple[optax.Params, optax.OptState]:
    given = functions(batch, losses)
    grads = jax.grad(given['value_fn'])(params)
    updates, opt_state = tx.update(grads, opt_state, params, **given)
    return optax.apply_updates(params, updates), opt_state

  return step


# Steps that are compared bit for bit use the default compiler options.
jit = functools.partial(jax.jit, **compiling.AS_USERS)


class Program(NamedTuple):
  """An optimizer and its compiled training step.

  Attributes:
    tx: the optimizer.
    step: the step without donation.
    donating: the same step, which donates parameters and state.
    traces: one entry per trace.
  """

  tx: optax.GradientTransformation
  step: Callable[..., tuple[optax.Params, optax.OptState]]
  donating: Any
  traces: list[None]


def compiled(tx: optax.GradientTransformation) -> Program:
  """Returns the step of an optimizer, compiled with default options."""
  traces, step = [], training_step(tx)

  def counted(*given: Any) -> Any:
    traces.append(None)
    return step(*given)

  # Unused arguments are not dropped, so that every buffer is donated.
  donating = jit(counted, donate_argnums=(0, 1), keep_unused=True)

  def kept(params: Any, opt_state: Any, batch: Any) -> Any:
    return donating(*jax.tree.map(jnp.copy, (params, opt_state)), batch)

  return Program(tx, kept, donating, traces)


@functools.cache
def program(name: str) -> Program:
  """Returns the step of a row with injected hyperparameters."""
  return compiled(table.ROWS[name].whole(inject=True))


@functools.cache
def neutral(name: str) -> Program:
  """Returns the step of a row at settings where `rho=0` is the base."""
  if name not in table.NEUTRAL:
    return program(name)
  return compiled(table.ROWS[name].whole(inject=True, **table.NEUTRAL[name]))


@functools.cache
def of_base() -> Program:
  """Returns the step of the base optimizer alone."""
  return compiled(optax.with_extra_args_support(table.base()))


@functools.cache
def direction(name: str) -> Callable[..., tuple[optax.Updates, Any]]:
  """Returns the jitted update of a method without a base optimizer."""
  tx = table.ROWS[name].alone()

  @jax.jit
  def update(
    params: optax.Params, state: Any, batch: Any
  ) -> tuple[optax.Updates, Any]:
    grads = jax.grad(loss)(params, batch)
    return tx.update(grads, state, params, **functions(batch))

  return update


def start(tx: optax.GradientTransformation) -> tuple[Any, Any]:
  """Returns (params, opt_state) before the first step."""
  return params(), tx.init(params())


def train(
  step: Callable[..., Any], state: tuple[Any, Any], steps: range
) -> tuple[optax.Params, optax.OptState]:
  """Takes the given steps from (params, opt_state)."""
  for t in steps:
    state = step(*state, batch(t))
  return state
