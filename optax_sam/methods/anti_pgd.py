"""Anti-PGD: adds noise to the updates and removes it one step later."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.gradient import gradient_like
from optax_sam.engine.info import check_state, only_state
from optax_sam.engine.transformation import accept
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_normal


class AntiPgdState(NamedTuple):
  """State of `anti_pgd`: `step_count`, PRNG `key`, noise `scale`."""

  step_count: jax.Array
  key: jax.Array
  scale: jax.Array


@validation.method()
def anti_pgd(
  sigma: optax.ScalarOrSchedule, *, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
  r"""Anti-PGD: adds noise at every step and removes that of the last step.

  .. math:: u = \Delta + \xi_{t+1} - \xi_t, \quad \xi_t = \sigma z_t

  :math:`\Delta` is the update of the base optimizer, :math:`z_t` is standard
  normal, drawn from `fold_in(key, t)`, and :math:`\xi_0 = 0`. Gradients are
  taken near the noise-free iterate :math:`w - \xi_t`: see `without_noise`.

  Args:
    sigma: standard deviation of every entry, in the unit of the parameters, at
      least 0, or a schedule of it by the step. The learning rate does not scale
      it.
    key: integer seed or typed key, the same on all devices.

  Returns:
    A gradient transformation to place **last** in `optax.chain`, after the base
    optimizer; state: the key. It draws two normal numbers for each
    floating-point parameter.

  .. note:: The noise is drawn again, not stored: parameters and updates should
    be float32 or wider, or rounding leaves a part of it. Unverified: whether
    the paper evaluates `w` or the noise-free iterate, and `sigma`.

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
    partition.warn_if_rounded(params)
    inside = partition.Leaves.of(params).split(params)
    scale = jnp.zeros((), tree_math.accumulator_dtype(inside))
    return AntiPgdState(jnp.zeros((), jnp.int32), validation.as_key(key), scale)

  def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
    check_state(state, AntiPgdState)
    scale = sigma(state.step_count) if callable(sigma) else sigma
    if params is not None:
      given = gradient_like(updates, params)
      if partition.with_gradient(given, params) is not None:
        msg = (
          'updates must not contain None: anti_pgd moves all parameters. Leave '
          'frozen parameters out of params.'
        )
        raise ValueError(msg)
    leaves = partition.Leaves.of(updates)
    inside = leaves.split(updates)
    scale = jnp.asarray(scale, state.scale.dtype)
    count = tree_math.increment(state.step_count)
    new_state = AntiPgdState(count, state.key, scale)
    change = optax.tree.sub(_noise(new_state, inside), _noise(state, inside))
    inside = _add(inside, change)
    return leaves.join(inside, updates), accept(inside, new_state, state)

  return optax.GradientTransformationExtraArgs(init, update)


def without_noise(params: optax.Params, opt_state: Any) -> optax.Params:
  r"""Returns the noise-free iterate :math:`w - \xi_t` of `anti_pgd`.

  Args:
    params: the parameters `w`.
    opt_state: state after the step that led to `params`, with exactly one
      `anti_pgd` in it, not inside `optax.masked` or `optax.partition`.

  Returns:
    The iterate, like `params`.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.anti_pgd(0.1, key=0), jnp.float32(3.0)
  >>> float(optax_sam.without_noise(w, tx.init(w)))  # there is none yet
  3.0
  """
  example = 'optax.chain(optax.sgd(0.1), optax_sam.anti_pgd(0.1, key=0))'
  state = only_state(opt_state, AntiPgdState, example)
  leaves = partition.Leaves.of(params)
  inside = leaves.split(params)
  noise = jax.tree.map(jnp.negative, _noise(state, inside))
  return leaves.join(_add(inside, noise), params)


def _noise(state: AntiPgdState, like: optax.Params) -> optax.Params:
  noise = draw_normal(state.key, state.step_count, like)
  return jax.tree.map(lambda z: state.scale.astype(z.dtype) * z, noise)


def _add(tree: Any, noise: Any) -> Any:
  added = jax.tree.map(lambda x, z: x.astype(z.dtype) + z, tree, noise)
  return optax.tree.cast_like(added, tree)
