"""Perturbations of leaves or entries drawn at random."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation


class RandomState(NamedTuple):
  """State of `keep_random_tensors` and `keep_random_entries`.

  Attributes:
    count: number of steps so far, a scalar int32.
    key: typed PRNG key that all draws derive from.
  """

  count: jax.Array
  key: jax.Array


def keep_random_tensors(
  probability: float, key: jax.Array | int
) -> optax.GradientTransformation:
  """Keeps whole leaves at random, by one coin a leaf and step: ESAM.

  With `t` the step and `l` the number of a leaf, both counted from 0::

    epsilon_l = g_l if bernoulli(fold_in(fold_in(key, t), l), p) else 0

  See `optax_sam.esam`, whose radius makes up for what is dropped.

  Args:
    probability: chance p that a leaf is kept, in (0, 1].
    key: integer seed or one typed key, the same on all devices; not that of
      the dropout.

  Returns:
    A perturbation, from the ascent gradient to the same with leaves of zeros.
    Keeps a count and the key (`RandomState`).

  Raises:
    ValueError: if a Python value is out of range, or the key is none.

  References:
    Du, Yan, Feng, Zhou, Zhen, Goh, Tan, `Efficient Sharpness-Aware
    Minimization for Improved Training of Neural Networks
    <https://arxiv.org/abs/2110.03141>`_, ICLR 2022.

  >>> piece, g = keep_random_tensors(0.5, key=3), [jnp.ones(1)] * 3
  >>> state = piece.init(g)
  >>> for _ in range(2):
  ...   epsilon, state = piece.update(g, state)
  ...   print([leaf.tolist() for leaf in epsilon])
  [[0.0], [1.0], [1.0]]
  [[1.0], [1.0], [0.0]]
  """
  return _keep_at_random(probability, key, shape=lambda _: ())


def keep_random_entries(
  probability: float, key: jax.Array | int
) -> optax.GradientTransformation:
  """Keeps single entries at random, by one coin an entry and step.

  The keys are those of `keep_random_tensors`, with a coin for every entry of a
  leaf. This is no published method's: a baseline for masks that choose.

  Args:
    probability: chance that an entry is kept, in (0, 1].
    key: integer seed or one typed key, the same on all devices; not that of
      the dropout.

  Returns:
    A perturbation, from the ascent gradient to the same with entries of zero.
    Keeps a count and the key (`RandomState`).

  Raises:
    ValueError: if a Python value is out of range, or the key is none.

  >>> piece, g = keep_random_entries(0.5, key=0), jnp.ones(6)
  >>> state = piece.init(g)
  >>> for _ in range(2):
  ...   epsilon, state = piece.update(g, state)
  ...   print(epsilon.tolist())
  [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
  [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
  """
  return _keep_at_random(probability, key, shape=lambda leaf: leaf.shape)


def _keep_at_random(
  probability: Any, key: Any, shape: Callable[[Any], tuple[int, ...]]
) -> optax.GradientTransformation:
  validation.check_number('probability', probability, above=0, at_most=1)
  validation.check_key(key)

  def init(params: optax.Params) -> RandomState:
    del params
    return RandomState(jnp.zeros((), jnp.int32), validation.as_key(key))

  @jax.jit
  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, RandomState]:
    del params
    draw = jax.random.fold_in(state.key, state.count)
    leaves, structure = jax.tree.flatten(updates)
    kept = [
      jnp.where(
        jax.random.bernoulli(
          jax.random.fold_in(draw, i),
          jnp.asarray(probability, jnp.float32),
          shape(leaf),
        ),
        leaf,
        0,
      )
      for i, leaf in enumerate(leaves)
    ]
    state = RandomState(numerics.increment(state.count), state.key)
    return structure.unflatten(kept), state

  return optax.GradientTransformation(init, update)
