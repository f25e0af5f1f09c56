"""The one problem that the rows of the table train on, and its steps."""

import functools
from collections.abc import Callable
from typing import Any

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


# Jitted for the sake of the tests that run a step outside of jit.
@jax.jit
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


@jax.jit
def loss(params: optax.Params, batch: Any) -> jax.Array:
  """Returns the mean squared error."""
  return jnp.mean(losses(params, batch))


# One for all calls, so that tests outside of jit don't compile it anew.
@functools.cache
def _mean(losses: Callable[..., Any]) -> Callable[..., jax.Array]:
  return jax.jit(lambda p, b: jnp.mean(losses(p, b)))


def functions(batch: Any, losses: Callable[..., Any] = losses) -> dict:
  """Returns what a step hands to `update` beside the gradients."""
  mean = _mean(losses)
  return {
    'value_fn': lambda p: mean(p, batch),
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


def base() -> optax.GradientTransformation:
  """Returns the base optimizer of the contracts."""
  return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))


# Programs that are compared to the bit with others, as users have them.
jit = functools.partial(jax.jit, **compiling.AS_USERS)


@functools.cache
def compiled(name: str) -> tuple[Any, Callable[..., Any]]:
  """Returns a method with its base, and its jitted step, shared by tests."""
  tx = optax.chain(table.ROWS[name](), base())
  return tx, jit(training_step(tx))


@functools.cache
def compiled_injected(name: str) -> tuple[Any, Callable[..., Any]]:
  """Returns the same with the numbers of the method in the state."""
  tx = optax.chain(table.ROWS[name].injected(), base())
  return tx, jit(training_step(tx))


@functools.cache
def direction(name: str) -> Callable[..., tuple[optax.Updates, Any]]:
  """Returns the jitted update of a method alone, at a batch."""
  tx = table.ROWS[name]()

  def update(
    params: optax.Params, state: Any, batch: Any
  ) -> tuple[optax.Updates, Any]:
    grads = jax.grad(loss)(params, batch)
    return tx.update(grads, state, params, **functions(batch))

  return jax.jit(update)


@functools.cache
def compiled_base() -> tuple[Any, Callable[..., Any]]:
  """Returns the base optimizer alone, and its jitted step."""
  tx = base()
  return tx, jit(training_step(optax.with_extra_args_support(tx)))


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
