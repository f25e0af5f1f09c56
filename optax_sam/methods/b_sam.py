"""bSAM: learns how far to perturb each parameter."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.engine import devices, manual_axes, partition
from optax_sam.engine.info import advance, first_state
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.transformation import accept, checked
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_normal


class BSamState(NamedTuple):
  """State of `b_sam`: m and s, a PRNG key, and `ascent`, which counts steps."""

  ascent: Any
  momentum: optax.Updates
  precision: optax.Updates
  key: jax.Array


@validation.method('micro_batches')
def b_sam(
  learning_rate: optax.ScalarOrSchedule = 0.5,
  *,
  rho: optax.ScalarOrSchedule = 0.01,
  b1: float = 0.9,
  b2: float = 0.999,
  damping: float = 0.1,
  prior_precision: float = 40.0,
  initial_precision: float = 1.0,
  micro_batches: int = 8,
  num_data: float,
  key: jax.Array | int,
  axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""bSAM: SAM as an optimal relaxation of Bayes.

  .. math::
    g &= \nabla L(w + z / \sqrt{N s}) \\
    \tilde g &= \nabla L(w + \rho\, g / s) \\
    m &\leftarrow \beta_1 m + (1 - \beta_1) (E[\tilde g] + \lambda w) \\
    u &= -\eta\, m / s \\
    s &\leftarrow \beta_2 s + (1 - \beta_2) (\sqrt{s}\, E[|g|] + d + \lambda)

  The precision :math:`s` sets both step size and perturbation, so bSAM replaces
  the base optimizer. :math:`E` averages over parts of the batch, each with its
  own standard normal :math:`z`; :math:`m = 0` at first. The weight decay is
  :math:`\lambda` = `prior_precision / num_data`. A factor on the loss changes
  the update.

  Args:
    learning_rate: factor :math:`\eta` of the update, at least 0, or a schedule.
      The authors' 0.5 is about SGD with 0.05 and momentum 0.9.
    rho: factor of the perturbation, at least 0, or a schedule of it. The
      authors use 0.01 on CIFAR-10 and 5e-5 on Tiny-ImageNet.
    b1, b2: weights of the past in `m` and in `s`, in [0, 1).
    damping: `d`, added to the values that `s` averages, at least 0.
    prior_precision: of the Gaussian prior of the parameters, at least 0.
    initial_precision: first value of `s`, above 0.
    micro_batches: number of consecutive parts of the batch of B, at least 1,
      weighted by examples: `ceil(B / micro_batches)` each, the last the rest.
    num_data: number N of training examples, above 0. The authors multiply it by
      a factor for augmentation, 4 on CIFAR-10.
    key: integer seed or typed key, the same on all devices.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
      Each device splits and perturbs by its own examples, with the same `z`.

  Returns:
    An optimizer with the learning rate, whose `update` needs `params`, and
    `per_example_value_fn` and `batch`, or with `micro_batches=1` `value_fn` or
    `grad_fn`; state: `m`, `s`, key. It costs 2 gradients (the incoming one is
    unused), and draws a normal number for each parameter and part.

  .. note:: The rule was checked against the authors' code; a port of it has
    a different rule. Batch norm normalizes each part separately.

  References:
    Moellenhoff, Khan, `SAM as an Optimal Relaxation of Bayes
    <https://arxiv.org/abs/2210.01620>`_, ICLR 2023.

  >>> import jax.numpy as jnp, optax_sam
  >>> off = {'prior_precision': 0.0, 'micro_batches': 1}
  >>> tx, w = optax_sam.b_sam(num_data=10, key=0, **off), jnp.float32(1.0)
  >>> update, state = tx.update(w, tx.init(w), w, value_fn=lambda w: 3 * w)
  >>> round(float(update), 4)  # -0.5 * 0.1 * 3, wherever the gradient is taken
  -0.15
  >>> round(float(state.precision), 4)  # 0.999 + 0.001 * (3 + 0.1)
  1.0021
  """
  validation.check_radius(learning_rate, 'learning_rate')
  validation.check_radius(rho)
  validation.check_number('b1', b1, at_least=0, below=1)
  validation.check_number('b2', b2, at_least=0, below=1)
  validation.check_number('damping', damping, at_least=0)
  validation.check_number('prior_precision', prior_precision, at_least=0)
  validation.check_number('initial_precision', initial_precision, above=0)
  validation.check_static_integer('micro_batches', micro_batches)
  validation.check_number('num_data', num_data, above=0)
  validation.check_key(key)

  def init(params: optax.Params) -> BSamState:
    w = partition.Leaves.of(params).split(params)
    zeros = tree_math.zeros_like(w)
    precision = optax.tree.full_like(zeros, initial_precision)
    return BSamState(first_state(w), zeros, precision, validation.as_key(key))

  def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
    view = LossView.open(params, updates, extra, axis_name=axis_name)
    w, s = view.leaves.split(params), state.precision
    manual_axes.check(view, None, axis_name)
    count = state.ascent.step_count
    radius = validation.at_step(rho, count)
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    step_key = jax.random.fold_in(state.key, count)

    def decay(dtype: Any) -> jax.Array:
      # An injected integer from a checkpoint may have another dtype.
      prior, size = (jnp.asarray(x, dtype) for x in (prior_precision, num_data))
      return prior / size

    noise = lambda z, s: z / jnp.sqrt(jnp.asarray(num_data, s.dtype) * s)
    ascent = lambda g, s: jnp.asarray(radius, s.dtype) * g.astype(s.dtype) / s

    def gradients(part: LossView, number: Any) -> tuple[Any, ...]:
      z = draw_normal(step_key, number, s)
      noisy = tree_math.add(w, jax.tree.map(noise, z, s))
      _, gradient = part.value_and_grad(noisy)
      point = tree_math.add(w, jax.tree.map(ascent, gradient, s))
      loss, perturbed = part.value_and_grad(point)
      last = state.ascent.info.perturbed_loss
      loss = last if loss is None else jnp.asarray(loss, last.dtype)
      trees = perturbed, jax.tree.map(jnp.abs, gradient)
      trees = jax.tree.map(tree_math.widen, trees)
      return *trees, tree_math.norm(gradient), loss

    def of_part(rows: tuple[jax.Array, Any]) -> tuple[Any, ...]:
      part = view.on(rows[1])
      weight = part.num_examples / view.num_examples
      found = gradients(part, rows[0][0])
      return jax.tree.map(lambda x: weight * tree_math.widen(x), found)

    if micro_batches == 1:
      found = gradients(view, 0)
    else:
      part_size = math.ceil(view.num_examples / micro_batches)
      numbers = np.arange(view.num_examples, dtype=np.int32) // part_size
      found = sum_over_chunks(of_part, (numbers, view.batch), part_size)
    perturbed, size, norm, loss = devices.average(found, axis_name)

    def mix(past: Any, old: jax.Array, new: jax.Array) -> jax.Array:
      past = jnp.asarray(past, old.dtype)
      return past * old + (1 - past) * new

    def next_momentum(m: jax.Array, ge: jax.Array, w: jax.Array) -> jax.Array:
      return mix(b1, m, ge.astype(m.dtype) + decay(m.dtype) * w.astype(m.dtype))

    def next_precision(s: jax.Array, size: jax.Array) -> jax.Array:
      added = jnp.sqrt(s) * size.astype(s.dtype) + jnp.asarray(damping, s.dtype)
      return mix(b2, s, added + decay(s.dtype))

    momentum = jax.tree.map(next_momentum, state.momentum, perturbed, w)
    precision = jax.tree.map(next_precision, s, size)
    move = lambda m, s: -jnp.asarray(rate, s.dtype) * m / s
    step = jax.tree.map(move, momentum, s)
    step = optax.tree.cast_like(step, view.leaves.split(updates))
    # A first gradient that is not finite may leave the step finite.
    valid = tree_math.all_finite(precision)
    info = advance(state.ascent, norm, loss)
    after = BSamState(info, momentum, precision, state.key)
    after = accept(step, after, state, valid)
    return view.leaves.join(tree_math.nan_unless(valid, step), updates), after

  return checked(init, update, BSamState)
