"""Checks of arguments; traced values pass, so that they can be injected."""

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

_Given = ParamSpec('_Given')
_Built = TypeVar('_Built')


@dataclasses.dataclass(frozen=True)
class _Static:
  """A value that `optax.inject_hyperparams` does not treat as a number."""

  value: Any


class _Signature(inspect.Signature):
  """A signature whose `bind` hides static values.

  `optax.inject_hyperparams` turns the numbers that it binds into arrays, and
  functions into schedules. Static arguments stay Python values.
  """

  name: str = ''
  static: frozenset[str] = frozenset()

  def replace(self, **changes: Any) -> '_Signature':
    """Returns another signature, as of `functools.partial`."""
    changed = super().replace(**changes)
    changed.name, changed.static = self.name, self.static
    return changed

  def fit(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """Binds arguments; if they don't fit, the error says what to write."""
    try:
      return super().bind(*args, **kwargs)
    except TypeError as error:
      required = [
        f'{x.name}=...'
        for x in self.parameters.values()
        if x.default is inspect.Parameter.empty
      ]
      msg = (
        f'{self.name}: {error}. Write optax_sam.{self.name}('
        f'{", ".join(required)}); it has {", ".join(self.parameters)}.'
      )
      if sum(isinstance(x, optax.GradientTransformation) for x in args) > 1:
        msg += (
          ' In place of the two optimizers of optax.contrib.sam write '
          'optax.chain(optax_sam.sam(rho=0.05), optimizer).'
        )
      raise TypeError(msg) from None

  def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """Binds arguments, with their defaults."""
    bound = self.fit(*args, **kwargs)
    bound.apply_defaults()
    for name in self.static & bound.arguments.keys():
      bound.arguments[name] = _Static(bound.arguments[name])
    return bound


def method(
  *static: str,
) -> Callable[[Callable[_Given, _Built]], Callable[_Given, _Built]]:
  """Decorates the function that builds a method.

  The error of a call that doesn't fit says what to write. The arguments named
  here, and `mask`, stay Python values in `optax.inject_hyperparams`.
  """

  def decorate(function: Callable[_Given, _Built]) -> Callable[_Given, _Built]:
    plain = inspect.signature(function)
    # `help` writes out aliases such as optax.ScalarOrSchedule, over many lines.
    signature = _Signature(
      [
        x if isinstance(x.annotation, type) else x.replace(annotation=x.empty)
        for x in plain.parameters.values()
      ],
      return_annotation=plain.return_annotation,
    )
    signature.name = function.__name__
    signature.static = frozenset((*static, 'mask')) & plain.parameters.keys()
    call = cast(Any, function)

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Any:
      signature.fit(*args, **kwargs)
      given = {
        name: x.value if isinstance(x, _Static) else x
        for name, x in kwargs.items()
      }
      return call(*args, **given)

    vars(build).update(__signature__=signature, static_args=static)
    return build

  return decorate


def is_python_number(value: Any) -> bool:
  """Whether a value can be checked when a transformation is built."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(
  name: str,
  value: Any,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
) -> None:
  """Raises unless a value is a number, and a Python number in its range."""
  if not is_python_number(value):
    _check_scalar(name, value)
    return
  bounds = (
    (at_least, 'at least', lambda bound: value >= bound),
    (above, 'above', lambda bound: value > bound),
    (at_most, 'at most', lambda bound: value <= bound),
    (below, 'below', lambda bound: value < bound),
  )
  given = [row for row in bounds if row[0] is not None]
  if value != value or not all(holds(bound) for bound, _, holds in given):
    wanted = ' and '.join(f'{words} {bound}' for bound, words, _ in given)
    msg = f'{name} must be {wanted or "a number"}, got {value!r}.'
    raise ValueError(msg)


def _check_scalar(name: str, value: Any) -> None:
  """Raises unless a value is an array of one number, traced or not."""
  kinds = jnp.floating, jnp.integer
  if isinstance(value, optax.GradientTransformation):
    msg = (
      f'{name} must be a number, got a gradient transformation. Place a method '
      f'before the base optimizer: write optax.chain(optax_sam.sam(rho=0.05), '
      f'base).'
    )
  elif not isinstance(value, (jax.Array, np.ndarray)):
    msg = f'{name} must be a number, got {value!r}.'
  elif value.shape != ():
    msg = f'{name} must be one number, got an array of shape {value.shape}.'
  elif not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
    msg = f'{name} must be a real number, got an array of {value.dtype}.'
  else:
    return
  raise ValueError(msg)


def check_radius(
  value: Any, name: str = 'rho', *, below: float | None = float('inf')
) -> None:
  """Raises if a radius is neither a number of at least 0 nor a schedule."""
  if not callable(value):
    check_number(name, value, at_least=0, below=below)


def at_step(
  radius: Any,
  step_count: Any,
  name: str = 'rho',
  *,
  below: float | None = float('inf'),
) -> Any:
  """Returns a radius, or that of a schedule at a step."""
  if not callable(radius):
    return radius
  found = radius(step_count)
  check_number(f'{name} of a step', found, at_least=0, below=below)
  return found


def check_component(name: str, value: Any, kind: type, example: str) -> None:
  """Raises unless a component of a method is of its class."""
  if not isinstance(value, kind):
    msg = (
      f'{name} must be a {kind.__name__}, got {value!r}: write, for example, '
      f'{name}=optax_sam.{example}.'
    )
    raise ValueError(msg)


def check_base(base: Any) -> None:
  """Raises unless a value is an optimizer."""
  if not isinstance(base, optax.GradientTransformation):
    msg = (
      f'base must be an optimizer, got {base!r}: write base=optax.sgd(0.1), '
      f'and the radius as rho=0.05.'
    )
    raise ValueError(msg)


def check_count(name: str, value: Any, *, at_least: int = 1) -> None:
  """Raises if a Python number isn't a whole number of steps."""
  check_number(name, value, at_least=at_least)
  if is_python_number(value) and value % 1 != 0:  # nan for infinity
    msg = f'{name} must be a whole number of steps, got {value!r}.'
    raise ValueError(msg)


def check_static(name: str, value: Any, kind: str = 'number') -> None:
  """Raises if a static argument is an array."""
  if isinstance(value, (jax.Array, np.ndarray)):
    msg = (
      f'{name} is a static argument and must be a Python {kind}, got '
      f"an array. With optax.inject_hyperparams write static_args=('{name}',)."
    )
    raise ValueError(msg)


def check_static_integer(name: str, value: Any, *, at_least: int = 1) -> None:
  """Raises unless a value is a Python integer in its range."""
  check_static(name, value, 'integer')
  if not isinstance(value, numbers.Integral) or isinstance(value, bool):
    msg = f'{name} must be a Python integer, got {value!r}.'
    raise ValueError(msg)
  check_number(name, value, at_least=at_least)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
  """Raises if a value is none of the choices."""
  check_static(name, value, 'value')
  if value not in choices:
    allowed = ', '.join(repr(choice) for choice in choices)
    msg = f'{name} must be one of {allowed}, got {value!r}.'
    raise ValueError(msg)


def as_key(key: Any, name: str = 'key') -> jax.Array:
  """Returns a typed PRNG key from a typed key or an integer seed."""
  if isinstance(key, numbers.Integral) and not isinstance(key, bool):
    return jax.random.key(int(key))
  if isinstance(key, jax.Array) and key.shape == ():
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      return jax.random.key(key)  # a seed that optax.inject_hyperparams traced
    # The state may be donated, but the key of the caller must not.
    return jnp.copy(key)
  msg = (
    f'{name} must be an integer seed or a typed key, got {key!r}: write '
    f'{name}=0 or {name}=jax.random.key(0).'
  )
  raise ValueError(msg)


def check_key(key: Any, name: str = 'key') -> None:
  """Raises if a key is neither an integer seed nor a typed key."""
  if not isinstance(key, numbers.Integral) or isinstance(key, bool):
    as_key(key, name)


def check_float_dtype(name: str, value: Any) -> None:
  """Raises unless a value is None or a floating-point dtype."""
  try:
    usable = value is None or jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except TypeError:
    usable = False
  if not usable:
    msg = (
      f"{name} must be None or a floating-point dtype, such as 'bfloat16', got "
      f'{value!r}. With optax.inject_hyperparams write the name of the dtype.'
    )
    raise ValueError(msg)


def check_sync_ascent(sync_ascent: Any, axis_name: Any) -> None:
  """Raises unless it is a bool, and there is an axis if it is True."""
  check_choice('sync_ascent', sync_ascent, (True, False))
  if sync_ascent and axis_name in (None, ()):
    msg = (
      "sync_ascent=True needs axis_name, such as axis_name='data': without "
      'one there is nothing to average over.'
    )
    raise ValueError(msg)
