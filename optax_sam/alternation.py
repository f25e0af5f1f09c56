"""Sharpness-aware steps in two calls, for trainers that hide the loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.extra_arguments import ARGUMENTS
from optax_sam.engine.info import SharpnessAwareState, metrics, only_state
from optax_sam.trees import control_flow, tree_math


class AlternatingState(NamedTuple):
  """State of `alternating`.

  `method` and `base` are the states of both parts; `is_perturbed` is whether
  the parameters are perturbed. If they are, `unperturbed` and `gradient` are
  the unperturbed parameters and the gradient there.
  """

  method: Any
  base: optax.OptState
  unperturbed: optax.Params
  gradient: optax.Updates
  is_perturbed: jax.Array


def alternating(
  method: optax.GradientTransformation, base: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  r"""Splits each step into two calls of `update`, one for each gradient.

  For trainers that call `tx.update(grads, state, params)` without a function of
  the loss, as in the transparent mode of `optax.contrib.sam`. Pass each batch
  twice. The updates of the first and the second call are:

  .. math::
    \begin{align*}
      u_1 &= \epsilon \text{, from the gradient at } w \\
      u_2 &= (w + \text{base}(\text{direction})) - (w + \epsilon)
    \end{align*}

  The direction is the combination of both gradients by `method`. A step that a
  policy skips is a single call. After a first call the parameters are
  perturbed: evaluate and save `optax_sam.unperturbed_params(params, state)`.

  Transformations after the method are a part of `base`; weight decay uses `w`.
  In a chain, place nothing after this optimizer, because that would change
  `u_2`; clipping before it applies to both gradients. On several devices
  average the gradients before `update`; inside `jax.pmap` or `jax.shard_map`
  build the method with `axis_name=()`.

  Args:
    method: a method with one gradient at perturbed parameters and without
      per-example losses: `sam` with one ascent step, `gsam`, `ae_sam`, ...
    base: base optimizer, chained with its weight decay, clipping and so on.

  Returns:
    An optimizer, whose `init` raises a ValueError for other methods. Its state
    has the states of both parts, and a copy of parameters and gradient.

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> tx = optax_sam.alternating(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> w = jnp.array([3.0, 4.0])
  >>> state = tx.init(w)
  >>> for _ in range(2):  # of the loss sum(w**2) / 2
  ...   updates, state = tx.update(w, state, w)
  ...   w = optax.apply_updates(w, updates)
  ...   print([round(x, 3) for x in w.tolist()])  # w + epsilon, w - 0.1 * that
  [3.3, 4.4]
  [2.67, 3.56]
  """
  validation.check_base(base)
  if not isinstance(method, optax.GradientTransformation):
    msg = f'method must be one such as optax_sam.sam(), got {method!r}.'
    raise ValueError(msg)
  method = optax.with_extra_args_support(method)
  base = optax.with_extra_args_support(base)

  def init(params: optax.Params) -> AlternatingState:
    _check(method, params)
    w = partition.Leaves.of(params).split(params)
    # Separate buffers: the same one can't be donated twice.
    zeros = lambda: jax.tree.map(jnp.zeros_like, w)
    is_perturbed = jnp.zeros((), bool)
    return AlternatingState(
      method.init(params), base.init(params), zeros(), zeros(), is_perturbed
    )

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, AlternatingState]:
    if params is None:
      msg = 'params must be given: write tx.update(grads, opt_state, params).'
      raise ValueError(msg)
    wanted, found = map(jax.tree.structure, (params, updates))
    if found != wanted:
      msg = (
        f'updates must be gradients like the parameters, zeros where a leaf '
        f'has none: their structure is {found}, wanted {wanted}.'
      )
      raise ValueError(msg)
    leaves = partition.Leaves.of(params)
    extra = {x: y for x, y in extra_args.items() if x not in ARGUMENTS}

    def step(clean: Any, w: Any, ascend: bool) -> tuple[Any, AlternatingState]:
      direction, ours = method.update(
        clean, state.method, w, grad_fn=lambda _: updates, ascend=ascend
      )
      change, theirs = base.update(direction, state.base, w, **extra)

      if ascend:
        # In this order the result equals that of a closure, mostly bit by bit.
        back = lambda u, w, p: (w + u.astype(w.dtype)) - p
        moved = jax.tree.map(back, *map(leaves.split, (change, w, params)))
        change = leaves.join(moved, change)
      is_perturbed = jnp.zeros((), bool)
      after = state._replace(
        method=ours, base=theirs, is_perturbed=is_perturbed
      )
      return optax.tree.cast_like(change, updates), after

    def second() -> tuple[Any, AlternatingState]:
      gradient = optax.tree.cast_like(state.gradient, leaves.split(updates))
      w = leaves.join(state.unperturbed, params)
      return step(leaves.join(gradient, updates), w, ascend=True)

    def first() -> tuple[Any, AlternatingState]:
      point, after = _perturb(method, updates, state.method, params)

      def move() -> tuple[Any, AlternatingState]:
        w, there, gradient = map(leaves.split, (params, point, updates))
        epsilon = jax.tree.map(jnp.subtract, there, w)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        change = leaves.join(optax.tree.cast_like(epsilon, gradient), zeros)
        return change, state._replace(
          unperturbed=jax.tree.map(jnp.copy, w),
          gradient=optax.tree.cast_like(gradient, w),
          is_perturbed=jnp.ones((), bool),
        )

      # If a gradient isn't finite, the base optimizer may reject it.
      finite = tree_math.all_finite(leaves.split(updates))
      moves = metrics(after)['decided'] & finite
      stay = lambda: step(updates, params, ascend=False)
      return control_flow.cond(moves, move, stay)

    return control_flow.cond(state.is_perturbed, second, first)

  return optax.GradientTransformationExtraArgs(init, update)


def unperturbed_params(params: optax.Params, opt_state: Any) -> optax.Params:
  """Returns the parameters without the perturbation of `alternating`.

  Args:
    params: the parameters.
    opt_state: state after the call that led to them, with exactly one
      `alternating` in it.

  Returns:
    A tree like `params`; `params`, if they aren't perturbed.

  >>> import jax.numpy as jnp, optax, optax_sam
  >>> tx = optax_sam.alternating(optax_sam.sam(rho=0.5), optax.sgd(0.1))
  >>> w = jnp.array([3.0, 4.0])
  >>> updates, state = tx.update(w, tx.init(w), w)
  >>> w = optax.apply_updates(w, updates)
  >>> optax_sam.unperturbed_params(w, state).tolist()
  [3.0, 4.0]
  """
  example = 'optax_sam.alternating(optax_sam.sam(), optax.sgd(0.1))'
  state = only_state(opt_state, AlternatingState, example)
  leaves = partition.Leaves.of(params)
  found = optax.tree.where(
    state.is_perturbed, state.unperturbed, leaves.split(params)
  )
  return leaves.join(found, params)


def _perturb(method: Any, clean: Any, state: Any, params: Any) -> Any:
  """Returns the perturbed parameters of the method, and its next state."""
  points = []

  def grad_fn(point: Any) -> Any:
    points.append(point)
    return clean

  _, after = method.update(clean, state, params, grad_fn=grad_fn, ascend=True)
  if len(points) != 1:
    msg = (
      f'method must take one perturbed gradient a step, got one that takes '
      f'{len(points)}, such as sam with ascent_steps=2, cr_sam, eigen_sam or '
      f'sparse_sam_layers: write tx = optax.chain(method, base), and pass '
      f'value_fn to tx.update.'
    )
    raise ValueError(msg)
  return points[0], after


def _check(method: Any, params: Any) -> None:
  """Raises unless a method needs one perturbed gradient and nothing else."""
  inner = state = jax.eval_shape(method.init, params)
  while hasattr(inner, 'inner_state'):
    inner = inner.inner_state
  if not isinstance(inner, SharpnessAwareState):
    msg = (
      f'method must be one to place before a base optimizer, such as '
      f'optax_sam.sam(), got one with a {type(inner).__name__}. If it wraps '
      f'the base optimizer, pass value_fn to tx.update instead. Put all other '
      f'transformations into base.'
    )
    raise ValueError(msg)
  zeros = jax.eval_shape(lambda p: jax.tree.map(jnp.zeros_like, p), params)
  point = lambda *given: _perturb(method, *given)[0]
  traced, cause = 'psum', None
  try:
    traced = str(jax.make_jaxpr(point)(zeros, state, params))
  except (NameError, ValueError, jax.errors.UnexpectedTracerError) as error:
    cause = error
    if not isinstance(error, NameError) and 'axis_name' not in str(error):
      msg = f'method must need one perturbed gradient and nothing else: {error}'
      raise ValueError(msg) from error
  if 'psum' in traced:
    msg = (
      'method must not average over devices, because their parameters would '
      'then differ: average the gradients before tx.update, and build the '
      'method without axis_name; inside jax.pmap and jax.shard_map, with '
      'axis_name=().'
    )
    raise ValueError(msg) from cause
