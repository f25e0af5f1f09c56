"""Entropy-SGD: moves toward the average of a noisy inner SGD run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, manual_axes, partition
from optax_sam.engine.info import only_state
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.transformation import accept, checked
from optax_sam.trees import control_flow, tree_math
from optax_sam.trees.random_trees import draw_normal


class EntropySgdState(NamedTuple):
  """State of `entropy_sgd`: x, mu and v, float32 or wider, counter and key."""

  step_count: jax.Array
  outer: optax.Params
  mean: optax.Params
  momentum: optax.Updates
  key: jax.Array


@validation.method()
def entropy_sgd(
  learning_rate: optax.ScalarOrSchedule = 1.0,
  *,
  inner_steps: int = 20,
  inner_learning_rate: optax.ScalarOrSchedule = 0.1,
  gamma: float = 0.03,
  scoping: float = 1e-3,
  noise: float = 1e-4,
  weight_decay: float = 0.0,
  key: jax.Array | int,
  axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Entropy-SGD: descends the local entropy, estimated by inner SGD steps.

  .. math::
    v &\leftarrow 0.9\, v + g, \quad d = g + 0.9\, v \\
    w &\leftarrow w - \eta\, (d - \gamma_n (x - w) + \lambda w)
      + \sqrt{2 \eta}\, \nu z, \quad \gamma_n = \gamma (1 + \kappa)^n \\
    \mu &\leftarrow 0.75\, \mu + 0.25\, w \\
    x &\leftarrow x - \alpha\, (x - \mu), \quad w, \mu \leftarrow x, \quad
      v \leftarrow 0, \quad n \leftarrow n + 1

  Each call is an inner step of :math:`w`; after `inner_steps` calls, the last
  row follows. At first :math:`x = \mu = w`, :math:`v = 0`; :math:`z` is
  standard normal. Evaluate the outer iterate :math:`x`,
  `optax_sam.outer_params(w, opt_state)`.

  Args:
    learning_rate: fraction of the way to `mu`, at least 0, or a schedule of it.
    inner_steps: calls between two steps of `x`, at least 1.
    inner_learning_rate: :math:`\eta`, at least 0, or a schedule by the call.
    gamma: pull back to `x`, at least 0; the authors' 0.03, and 1e-4 on MNIST.
    scoping: :math:`\kappa`, growth of `gamma` by round (n from 1), at least 0.
    noise: :math:`\nu`, factor of the noise, at least 0.
    weight_decay: :math:`\lambda`, at least 0; the authors' 0, 1e-3 on CIFAR.
    key: integer seed or typed key, the same on all devices.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.

  Returns:
    An optimizer that includes the learning rate, whose `update` needs `params`;
    state: `x`, `mu`, `v`, key. Cost: 1 gradient, a normal number a parameter.

  .. note:: The authors' Lua code was read, not run. It also computes a gradient
    that it does not use. Their Python code differs.

  References:
    Chaudhari et al., `Entropy-SGD: Biasing Gradient Descent Into Wide Valleys
    <https://arxiv.org/abs/1611.01838>`_, ICLR 2017.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax_sam.entropy_sgd(inner_steps=2, gamma=0.0, noise=0.0, key=0)
  >>> w = jnp.float32(1.0)
  >>> state = tx.init(w)
  >>> for _ in range(2):
  ...   updates, state = tx.update(jnp.float32(1.0), state, w)
  ...   w = optax.apply_updates(w, updates)
  ...   print(round(float(w), 4))  # w - 0.19, then x = mu
  0.81
  0.8491
  """
  validation.check_radius(learning_rate, 'learning_rate')
  validation.check_radius(inner_learning_rate, 'inner_learning_rate')
  validation.check_count('inner_steps', inner_steps)
  validation.check_number('gamma', gamma, at_least=0)
  validation.check_number('scoping', scoping, at_least=0)
  validation.check_number('noise', noise, at_least=0)
  validation.check_number('weight_decay', weight_decay, at_least=0)
  validation.check_key(key)

  def init(params: optax.Params) -> EntropySgdState:
    w = partition.Leaves.of(params).split(params)
    # Separate buffers: the same one can't be donated twice.
    outer, mean = jax.tree.map(_copy, w), jax.tree.map(_copy, w)
    count, momentum = jnp.zeros((), jnp.int32), tree_math.zeros_like(w)
    return EntropySgdState(count, outer, mean, momentum, validation.as_key(key))

  def update(updates: Any, state: Any, params: Any, **_: Any) -> Any:
    leaves = partition.Leaves.of(params, updates=updates)
    local, x = leaves.split(updates), state.outer
    w = tree_math.widen_like(leaves.split(params), x)
    view = LossView(leaves=leaves, params=params)
    manual_axes.check(view, local, axis_name)
    gradient = optax.tree.cast_like(devices.average(local, axis_name), x)
    is_finite = tree_math.all_finite(gradient)
    now = lambda x: x(state.step_count) if callable(x) else x
    rate, eta = now(learning_rate), now(inner_learning_rate)
    count = tree_math.increment(state.step_count)
    period = jnp.asarray(inner_steps, count.dtype)
    rounds = state.step_count // period + 1
    add = lambda v, g: 0.9 * v + g

    def step(w: Any, x: Any, g: Any, v: Any, z: Any) -> jax.Array:
      number = lambda value: jnp.asarray(value, x.dtype)
      pull = number(gamma) * (1 + number(scoping)) ** number(rounds)
      drift = g + 0.9 * add(v, g) - pull * (x - w) + number(weight_decay) * w
      jump = jnp.sqrt(2 * number(eta)) * number(noise) * z
      return w - number(eta) * drift + jump

    def move() -> optax.Params:
      z = draw_normal(state.key, state.step_count, w)
      return jax.tree.map(step, w, x, gradient, state.momentum, z)

    # The conditional stores the end; otherwise XLA recomputes it, with the
    # noise, for everything that depends on it.
    end = control_flow.cond(is_finite, move, lambda: w)
    momentum = jax.tree.map(add, state.momentum, gradient)
    mean = jax.tree.map(lambda m, w: 0.75 * m + 0.25 * w, state.mean, end)
    toward = lambda x, m: x - jnp.asarray(rate, x.dtype) * (x - m)
    moved = jax.tree.map(toward, x, mean)
    rest = jax.tree.map(jnp.zeros_like, momentum)
    end, x, mean, momentum = optax.tree.where(
      count % period == 0, (moved, moved, moved, rest), (end, x, mean, momentum)
    )
    change = optax.tree.cast_like(jax.tree.map(jnp.subtract, end, w), local)
    after = EntropySgdState(count, x, mean, momentum, state.key)
    after = accept(change, after, state, is_finite)
    return leaves.join(tree_math.nan_unless(is_finite, change), updates), after

  return checked(init, update, EntropySgdState)


def outer_params(params: optax.Params, opt_state: Any) -> optax.Params:
  """Returns the outer iterate `x` of `entropy_sgd`, the one to evaluate.

  Args:
    params: the parameters; leaves that are not floating-point are returned.
    opt_state: state of an optimizer with exactly one `entropy_sgd` in it.

  Returns:
    A tree like `params`.

  >>> import jax.numpy as jnp, optax_sam
  >>> state = optax_sam.entropy_sgd(key=0).init(jnp.float32(2.0))
  >>> float(optax_sam.outer_params(jnp.float32(3.0), state))
  2.0
  """
  state = only_state(opt_state, EntropySgdState, 'optax_sam.entropy_sgd(key=0)')
  leaves = partition.Leaves.of(params)
  outer = optax.tree.cast_like(state.outer, leaves.split(params))
  return leaves.join(outer, params)


def _copy(leaf: Any) -> jax.Array:
  dtype = tree_math.wide_dtype(leaf)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jnp.zeros(leaf.shape, dtype)
  return jnp.array(leaf, dtype)
