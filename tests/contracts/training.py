"""The one problem that the rows of the table train on, and its steps."""

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
  """Returns the parameters of a dense layer and of a scale behind it."""
  numbers = np.sin(np.arange(1, 13))
  return {
    'dense': {
      'bias': jnp.asarray(0.1 * numbers[:2], dtype),
      'kernel': jnp.asarray(numbers[2:8].reshape(3, 2), dtype),
    },
    'norm': {'scale': jnp.asarray(1 + 0.1 * numbers[8:10], dtype)},
  }


def batch(step: int = 0) -> dict[str, jax.Array]:
  """Returns another batch at each of the steps."""
  numbers = np.sin(np.arange(NUM_EXAMPLES * 5) * 1.7 + step)
  x, y = np.split(numbers.reshape(NUM_EXAMPLES, 5), [3], axis=1)
  return {
    'weight': jnp.ones(NUM_EXAMPLES, jnp.float32),
    'x': jnp.asarray(x, jnp.float32),
    'y': jnp.asarray(y, jnp.float32),
  }


def spoilt(step: int, bad: float = np.nan) -> dict[str, jax.Array]:
  """Returns the batch of a step with a label that is no number."""
  found = batch(step)
  return {**found, 'y': found['y'].at[:, 1].set(bad)}


def losses(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the weighted squared error of every example."""
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
  """Returns what a step passes to `update` beside the gradients."""
  return {
    'value_fn': lambda p: jnp.mean(losses(p, batch)),
    'per_example_value_fn': losses,
    'batch': batch,
  }


def training_step(
  tx: optax.GradientTransformation, losses: Callable[..., Any] = losses
) -> Callable[..., tuple[optax.Params, optax.OptState]]:
  """Returns the one training step that serves every method."""

  def step(
    params: optax.Params, opt_state: optax.OptState, batch: Any
  ) -> tuple[optax.Params, optax.OptState]:
    given = functions(batch, losses)
    grads = jax.grad(given['value_fn'])(params)
    updates, opt_state = tx.update(grads, opt_state, params, **given)
    return optax.apply_updates(params, updates), opt_state

  return step


# Programs that are compared to the bit with others, as users have them.
jit = functools.partial(jax.jit, **compiling.AS_USERS)


class Program(NamedTuple):
  """An optimizer and its compiled training step.

  Attributes:
    tx: the optimizer.
    step: the step, which leaves what is given to it.
    donating: the same program: it takes the buffers of parameters and state.
    traces: one entry for every time that it was traced.
  """

  tx: optax.GradientTransformation
  step: Callable[..., tuple[optax.Params, optax.OptState]]
  donating: Any
  traces: list[None]


def compiled(tx: optax.GradientTransformation) -> Program:
  """Returns the program of an optimizer, compiled as users do."""
  traces, step = [], training_step(tx)

  def counted(*given: Any) -> Any:
    traces.append(None)
    return step(*given)

  # Kept where unused, so that every single buffer is donated.
  donating = jit(counted, donate_argnums=(0, 1), keep_unused=True)

  def kept(params: Any, opt_state: Any, batch: Any) -> Any:
    return donating(*jax.tree.map(jnp.copy, (params, opt_state)), batch)

  return Program(tx, kept, donating, traces)


@functools.cache
def program(name: str) -> Program:
  """Returns that of a row with the numbers of the method in the state."""
  return compiled(table.ROWS[name].whole(inject=True))


@functools.cache
def neutral(name: str) -> Program:
  """Returns that by which `rho=0` is the base optimizer."""
  if name not in table.NEUTRAL:
    return program(name)
  return compiled(table.ROWS[name].whole(inject=True, **table.NEUTRAL[name]))


@functools.cache
def of_base() -> Program:
  """Returns that of the base optimizer alone."""
  return compiled(optax.with_extra_args_support(table.base()))


@functools.cache
def direction(name: str) -> Callable[..., tuple[optax.Updates, Any]]:
  """Returns the jitted update of a method alone, at a batch."""
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
  """Trains over some of the steps from (params, opt_state) on."""
  for t in steps:
    state = step(*state, batch(t))
  return state
