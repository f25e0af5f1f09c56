"""Loops and branches: those of JAX under tracing, else those of Python.

Outside of `jax.jit` a loop of JAX would be compiled again at every call, since
its body is a new function object each time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_traced() -> bool:
  """Whether operations are traced now, and not run."""
  return isinstance(jnp.zeros(()), jax.core.Tracer)


def cond(
  predicate: Any, on_true: Callable[[], Any], on_false: Callable[[], Any]
) -> Any:
  """Takes one of two branches."""
  if isinstance(predicate, jax.core.Tracer):
    return jax.lax.cond(predicate, on_true, on_false)
  return on_true() if predicate else on_false()


def fori_loop(times: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
  """Applies `body(i, value)` for i from 0 on."""
  if is_traced():
    return jax.lax.fori_loop(0, times, body, start)
  for i in range(times):
    start = body(i, start)
  return start
