"""Anti-PGD: adds noise to the updates, and removes it one step later."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.info import only_state
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_noise


class AntiPgdState(NamedTuple):
  """State of `anti_pgd`.

  Attributes:
    count: number of steps so far, a scalar int32.
    key: typed PRNG key that all draws derive from.
    scale: standard deviation of the noise that the parameters hold, a scalar; 0
      before the first step.
  """

  count: jax.Array
  key: jax.Array
  scale: jax.Array


def anti_pgd(
  sigma: optax.ScalarOrSchedule, *, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
  """Anti-PGD: adds noise at every step, and takes that of the last step back.

  With `t` the step, counted from 0, `z_t` of standard normal entries drawn from
  `fold_in(key, t)`, and `update` that of the base optimizer::

    xi_0     = 0
    xi_{t+1} = sigma * z_{t+1}
    u        = update + xi_{t+1} - xi_t

  So the parameters are those of a run, `w - xi_t`, whose gradients are taken a
  random step aside: `without_noise` returns it. Whether the paper evaluates it
  or the parameters themselves could not be confirmed, nor a value of `sigma`.
  The noise is drawn again rather than kept, and isn't scaled by a learning
  rate. Keep parameters and updates in float32 or wider: what is rounded away
  when noise is added can't be taken back.

  Args:
    sigma: standard deviation of every entry, in the unit of the parameters, at
      least 0, or a schedule of it by the step.
    key: integer seed or typed key, the same on all devices.

  Returns:
    A gradient transformation, to be placed **last** in `optax.chain`, behind
    the base optimizer: what comes in must be the whole update. Leaves that are
    no floating-point numbers pass. Cost: that of the base optimizer, and two
    normal numbers drawn for each parameter. Keeps the key (`AntiPgdState`).

  Raises:
    ValueError: if a Python value is out of range.

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
    floats = partition.keep(partition.float_leaves(params), params)
    scale = jnp.zeros((), tree_math.accumulator_dtype(floats))
    return AntiPgdState(jnp.zeros((), jnp.int32), validation.as_key(key), scale)

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, AntiPgdState]:
    del params, extra_args
    scale = sigma(state.count) if callable(sigma) else sigma
    floats = jax.tree.map(tree_math.is_float, updates)
    inside = partition.keep(floats, updates)
    count = tree_math.increment(state.count)
    before = draw_noise(state.key, state.count, inside)
    after = draw_noise(state.key, count, inside)
    inside, scale = _exchange(inside, before, after, state.scale, scale)
    updates = partition.fill(floats, inside, updates)
    return updates, AntiPgdState(count, state.key, scale)

  return optax.GradientTransformationExtraArgs(init, update)


def without_noise(params: optax.Params, opt_state: Any) -> optax.Params:
  """Returns the parameters less the noise that `anti_pgd` has added to them.

  Args:
    params: the parameters.
    opt_state: state of an optimizer that has `anti_pgd` in it, in a chain or
      wrapped, but not in `optax.masked` or `optax.partition`, after the step
      that led to `params`.

  Returns:
    `w - xi_t`, like `params` in structure, shapes and dtypes.

  Raises:
    ValueError: if there is no such element, or more than one.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax.chain(optax.sgd(0.1), optax_sam.anti_pgd(0.1, key=0))
  >>> w = jnp.array([3.0, 4.0])
  >>> optax_sam.without_noise(w, tx.init(w)).tolist()  # there is none yet
  [3.0, 4.0]
  """
  state = only_state(
    opt_state,
    AntiPgdState,
    'optax.chain(optax.sgd(0.1), optax_sam.anti_pgd(0.1, key=0))',
  )
  floats = jax.tree.map(tree_math.is_float, params)
  inside = partition.keep(floats, params)
  noise = draw_noise(state.key, state.count, inside)
  nothing = jnp.zeros_like(state.scale)
  clean, _ = _exchange(inside, noise, noise, state.scale, nothing)
  return partition.fill(floats, clean, params)


@jax.jit
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
