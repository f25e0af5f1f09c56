"""An optimizer that learns how far to perturb each parameter."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.engine import ascents, devices, partition
from optax_sam.engine.loss_view import Objective
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_direction


class BSamState(NamedTuple):
  """State of `b_sam`.

  Attributes:
    ascent: `SharpnessAwareState` that counts the steps.
    momentum: `m`, like the parameters, float32 or wider.
    precision: `s`, likewise.
    key: typed PRNG key.
  """

  ascent: Any
  momentum: optax.Updates
  precision: optax.Updates
  key: jax.Array


class _Found(NamedTuple):
  """Means over the parts of a batch."""

  gradient: optax.Updates
  size: optax.Updates
  norm: jax.Array
  loss: jax.Array


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
  """bSAM: SAM as an optimal relaxation of Bayes, an optimizer of its own.

  With `m = 0` and `s = initial_precision` before the first step,
  `wd = prior_precision / num_data`, and for each of the parts of the batch
  `n` with standard normal entries, drawn anew::

    g  = gradient at w + n / sqrt(num_data * s)
    ge = gradient at w + rho * g / s             # from w, of the same part
    m  = b1 * m + (1 - b1) * (mean of ge + wd * w)
    update = -learning_rate * m / s              # s as it was
    s  = b2 * s + (1 - b2) * (sqrt(s) * mean of abs(g) + damping + wd)

  There is neither a norm nor a correction of the bias. `s` belongs to the
  learning rate and to the perturbation alike, so it is a whole optimizer and
  takes the place of a base; weight decay is `wd`. The rule was checked against
  the authors' program; another port is of another rule. Where a gradient isn't
  finite, neither is the update, but `m` and `s` stay as they were. A factor on
  the loss changes the perturbation.

  Args:
    learning_rate: factor of the update, a scalar of at least 0, or a schedule
      of it by the step; the authors' 0.5 is about an SGD of 0.05 with momentum
      0.9.
    rho: factor of the perturbation, at least 0, or a schedule of it by the
      step; the authors take 0.01 on CIFAR-10 and 5e-5 on Tiny-ImageNet.
    b1: weight of the past in `m`, in [0, 1).
    b2: weight of the past in `s`, in [0, 1).
    damping: added to what `s` averages, at least 0.
    prior_precision: of the Gaussian prior of the parameters, at least 0.
    initial_precision: first value of `s`, above 0.
    micro_batches: number of parts that the batch of B is split into, in order,
      a Python int of at least 1 (`optax.inject_hyperparams` is to be told that
      it is static). They have `ceil(B / micro_batches)` examples,
      the last one what remains, and weigh by their examples.
    num_data: number of training examples, above 0; the authors multiply it by
      a factor for augmentation, 4 on CIFAR-10.
    key: integer seed or typed key, the same on all devices.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
      Each device splits its own examples, and perturbs by its own gradients;
      `n` is the same on all devices.

  Returns:
    An optimizer whose `update` needs `params`, and `per_example_value_fn` and
    `batch`, or if `micro_batches` is 1 `value_fn` or `grad_fn`, and returns the
    whole update: no learning rate follows. Cost: 2 gradients, and a normal
    number drawn for each parameter and part; the gradient that comes in isn't
    used. With batch norm each part is normalized by itself. Keeps `m`, `s` and
    the key (`BSamState`).

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Moellenhoff, Khan, `SAM as an Optimal Relaxation of Bayes
    <https://arxiv.org/abs/2210.01620>`_, ICLR 2023.

  On a line the perturbations don't matter:

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.b_sam(
  ...   0.5, num_data=10, prior_precision=0.0, micro_batches=1, key=0
  ... )
  >>> w = jnp.float32(1.0)
  >>> update, state = tx.update(w, tx.init(w), w, value_fn=lambda w: 3 * w)
  >>> round(float(update), 4)  # -0.5 * 0.1 * 3
  -0.15
  >>> round(float(state.precision), 4)  # 0.999 + 0.001 * (3 + 0.1)
  1.0021
  """
  for name, value in (('learning_rate', learning_rate), ('rho', rho)):
    validation.check_radius(value, name)
  validation.check_number('b1', b1, at_least=0, below=1)
  validation.check_number('b2', b2, at_least=0, below=1)
  validation.check_number('damping', damping, at_least=0)
  validation.check_number('prior_precision', prior_precision, at_least=0)
  validation.check_number('initial_precision', initial_precision, above=0)
  validation.check_static_integer('micro_batches', micro_batches)
  validation.check_number('num_data', num_data, above=0)
  validation.check_key(key)

  def init(params: optax.Params) -> BSamState:
    floats = partition.keep(partition.float_leaves(params), params)
    zeros = tree_math.zeros_like(floats)
    ones = jax.tree.map(
      lambda x: x + jnp.asarray(initial_precision, x.dtype),
      tree_math.zeros_like(floats),
    )
    return BSamState(ascents.init(params), zeros, ones, validation.as_key(key))

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, BSamState]:
    objective = ascents.objective_of(params, extra_args, axis_name)
    floats = objective.floats
    center = partition.keep(floats, params)
    count = state.ascent.count
    radius = rho(count) if callable(rho) else rho
    rate = learning_rate(count) if callable(learning_rate) else learning_rate

    def of_part(part: Objective, number: Any) -> _Found:
      draw = jax.random.fold_in(state.key, count)
      z = draw_direction(jax.random.fold_in(draw, number), state.precision)
      noisy = _spread(num_data, center, z, state.precision)
      _, gradient = part.value_and_grad(noisy)
      point = _perturb(radius, center, gradient, state.precision)
      loss, perturbed = part.value_and_grad(point)
      size = jax.tree.map(lambda x: jnp.abs(tree_math.widen(x)), gradient)
      loss = ascents.known_loss(loss, state.ascent)
      norm = tree_math.norm(gradient)
      return _Found(jax.tree.map(tree_math.widen, perturbed), size, norm, loss)

    found = _mean_over_parts(objective, micro_batches, of_part)
    found = devices.average(found, axis_name)
    numbers = b1, b2, damping, prior_precision / num_data, rate
    momentum, precision, step = _step(numbers, center, found, state)
    is_finite = jnp.isfinite(
      tree_math.norm(momentum) + tree_math.norm(precision)
    )
    momentum, precision = tree_math.select(
      is_finite, (momentum, precision), (state.momentum, state.precision)
    )
    step = tree_math.cast_like(step, partition.keep(floats, updates))
    return partition.fill(floats, step, updates), BSamState(
      ascents.advance(state.ascent, found.norm, found.loss),
      momentum,
      precision,
      state.key,
    )

  return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _spread(
  num_data: Any, center: optax.Params, z: optax.Updates, precision: Any
) -> optax.Params:
  noise = jax.tree.map(
    lambda x, s: x / jnp.sqrt(jnp.asarray(num_data, s.dtype) * s), z, precision
  )
  return tree_math.add(center, noise)


@jax.jit
def _perturb(
  radius: Any, center: optax.Params, gradient: optax.Updates, precision: Any
) -> optax.Params:
  epsilon = jax.tree.map(
    lambda g, s: jnp.asarray(radius, s.dtype) * g.astype(s.dtype) / s,
    gradient,
    precision,
  )
  return tree_math.add(center, epsilon)


@jax.jit
def _step(
  numbers: Any, center: optax.Params, found: _Found, state: BSamState
) -> tuple[optax.Updates, optax.Updates, optax.Updates]:
  """Returns the next momentum, the next precision and the update."""

  def leaf(w: Any, ge: Any, g: Any, m: Any, s: Any) -> Any:
    b1, b2, damping, decay, rate = (jnp.asarray(x, s.dtype) for x in numbers)
    w, ge, g = (x.astype(s.dtype) for x in (w, ge, g))
    m = b1 * m + (1 - b1) * (ge + decay * w)
    past = jnp.sqrt(s) * g + damping + decay
    return m, b2 * s + (1 - b2) * past, -rate * m / s

  leaves = jax.tree.map(
    leaf, center, found.gradient, found.size, state.momentum, state.precision
  )
  outer, inner = jax.tree.structure(center), jax.tree.structure((0, 0, 0))
  return jax.tree.transpose(outer, inner, leaves)


def _mean_over_parts(
  objective: Objective, micro_batches: int, of_part: Any
) -> _Found:
  """Averages over consecutive parts of the batch, one in memory at a time."""
  if micro_batches == 1:
    return of_part(objective, 0)
  examples = objective.num_examples
  size = math.ceil(examples / micro_batches)
  numbers = np.arange(examples, dtype=np.int32) // size

  def weighed(rows: tuple[jax.Array, Any]) -> Any:
    number, batch = rows
    part = objective.on(batch)
    found = of_part(part, number[0])
    weight = part.num_examples / examples
    return jax.tree.map(lambda x: weight * tree_math.widen(x), found)

  return sum_over_chunks(
    weighed, (numbers, objective.batch), size, objective.axis_name
  )
