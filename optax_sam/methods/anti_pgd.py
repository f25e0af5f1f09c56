"""Anti-PGD: adds noise to the updates and removes it one step later."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.info import only_state
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_normal


class AntiPgdState(NamedTuple):
  """State of `anti_pgd`.

  Attributes:
    count: number of steps so far, a scalar int32.
    key: typed PRNG key that all draws derive from.
    scale: standard deviation of the noise in the parameters; 0 at first.
  """

  count: jax.Array
  key: jax.Array
  scale: jax.Array


def anti_pgd(
  sigma: optax.ScalarOrSchedule, *, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
  """Anti-PGD: adds noise at every step and removes that of the last step.

  With `t` the step from 0, `z_t` standard normal, drawn from `fold_in(key, t)`,
  and `update` that of the base optimizer::

    xi_0     = 0
    xi_{t+1} = sigma * z_{t+1}
    u        = update + xi_{t+1} - xi_t

  So `w - xi_t` is a noise-free iterate, and its gradients are taken at a random
  point nearby; `without_noise` returns it. Unverified: whether the paper
  evaluates that iterate or `w`, and a value of `sigma`. The noise is not scaled
  by a learning rate. It is drawn again instead of stored: parameters and
  updates should be float32 or wider, or rounding leaves a part of it behind.

  Args:
    sigma: standard deviation of every entry, in the unit of the parameters, at
      least 0, or a schedule of it by the step.
    key: integer seed or typed key, the same on all devices.

  Returns:
    A gradient transformation, to be placed **last** in `optax.chain`, after the
    base optimizer. Leaves that are not floating-point are unchanged. Cost: two
    normal numbers drawn for each parameter. State: the key.

  References:
    Orvieto, Kersting, Proske, Bach, Lucchi, `Anticorrelated Noise Injection for
    Improved Generalization <https://arxiv.org/abs/2202.02831>`_, ICML 2022.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax.sgd(0.5), optax_sam.anti_pgd(0.1, key=0))
  >>> w = jnp.array([4.0, 5.0])
  >>> state = tx.init(w)
  >>> for _ in range(2):  # of the loss 3 * w[0] + 4 * w[1]
  ...   updates, state = tx.update(jnp.array([3.0, 4.0]), state, w)
  ...   w = optax.apply_updates(w, updates)
  >>> [round(x, 3) for x in optax_sam.without_noise(w, state).tolist()]
  [1.0, 1.0]
  """
  validation.check_radius(sigma, 'sigma')
  validation.check_key(key)

  def init(params: optax.Params) -> AntiPgdState:
    inside = partition.Leaves.of(params).split(params)
    scale = jnp.zeros((), tree_math.accumulator_dtype(inside))
    return AntiPgdState(jnp.zeros((), jnp.int32), validation.as_key(key), scale)

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, AntiPgdState]:
    del params, extra_args
    scale = sigma(state.count) if callable(sigma) else sigma
    leaves = partition.Leaves.of(updates)
    inside = leaves.split(updates)
    count = tree_math.increment(state.count)
    before = draw_normal(state.key, state.count, inside)
    after = draw_normal(state.key, count, inside)
    inside, scale = _exchange(inside, before, after, state.scale, scale)
    updates = leaves.join(inside, updates)
    return updates, AntiPgdState(count, state.key, scale)

  return optax.GradientTransformationExtraArgs(init, update)


def without_noise(params: optax.Params, opt_state: Any) -> optax.Params:
  """Returns the noise-free iterate `w - xi_t` of `anti_pgd`.

  Args:
    params: the parameters `w`.
    opt_state: state after the step that led to `params`, with exactly one
      `anti_pgd` in it, not inside `optax.masked` or `optax.partition`.

  Returns:
    The iterate, like `params` in structure, shapes and dtypes.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.anti_pgd(0.1, key=0), jnp.float32(3.0)
  >>> float(optax_sam.without_noise(w, tx.init(w)))  # there is none yet
  3.0
  """
  state = only_state(
    opt_state,
    AntiPgdState,
    'optax.chain(optax.sgd(0.1), optax_sam.anti_pgd(0.1, key=0))',
  )
  leaves = partition.Leaves.of(params)
  inside = leaves.split(params)
  noise = draw_normal(state.key, state.count, inside)
  nothing = jnp.zeros_like(state.scale)
  clean, _ = _exchange(inside, noise, noise, state.scale, nothing)
  return leaves.join(clean, params)


def _exchange(
  tree: Any, before: Any, after: Any, old_scale: jax.Array, new_scale: Any
) -> tuple[Any, jax.Array]:
  """Adds one noise and takes another one back; returns the new scale too."""
  new_scale = jnp.asarray(new_scale).astype(old_scale.dtype)

  def leaf(x: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    change = (
      new_scale.astype(new.dtype) * new - old_scale.astype(old.dtype) * old
    )
    return (x.astype(change.dtype) + change).astype(x.dtype)

  return jax.tree.map(leaf, tree, before, after), new_scale
