"""SAM on some layers, which saves the operations before the first of them."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import gradient, partition, selection
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.read_order import read_order
from optax_sam.engine.shared_forward import share_forward
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.engine.trainable import Trainable
from optax_sam.methods.sparse_sam_fisher import fisher_information
from optax_sam.methods.subset_sam import random_subset


@validation.method('layers', 'fraction')
def sparse_sam_layers(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  layers: float | partition.Mask = 0.5,
  fraction: float = 1.0,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM that perturbs some layers, chosen before the step is compiled.

  With the leaves :math:`c` that are perturbed and all leaves :math:`w`:

  .. math::
    \begin{align*}
      \epsilon_c &= \rho\, g_c / (\|g_c\| + 10^{-12}), \quad
        g = \nabla L(w), \quad \epsilon = 0 \text{ elsewhere} \\
      u &= \nabla L(w + \epsilon) \text{ of all leaves}
    \end{align*}

  The rule is `sam` with a mask, at lower cost: the backward pass of the ascent
  gradient stops at the first perturbed leaf, and both gradients share the
  forward pass up to that leaf. A mask that changes inside of the compiled step,
  as in `sparse_sam_fisher`, saves nothing.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's.
    layers: the leaves to perturb. A float in (0, 1] is a fraction of the
      leaves, the last ones in the order in which the loss reads them; otherwise
      a tree of bools or a function, as for `mask`, such as a tree from
      `optax_sam.choose_leaves`.
    fraction: part of the batch for the ascent gradient, as in
      `optax_sam.subset_sam`; 1.0 is the whole batch. A smaller part needs
      `per_example_value_fn` and `batch`.
    mask: the leaves to choose from, such as `optax_sam.trainable`; all by
      default.
    axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `value_fn` or `grad_fn`; stateless. With the last half of a network it
    costs about 1.5 gradients a step, with a quarter of the batch 1.2. With
    `grad_fn`, or without `jax.jit`, no forward pass is shared.

  .. note::
    Unverified: the paper chooses single weights, and saves no time with them;
    whole leaves, and their choice by depth, are this library's.

  References:
    Mi et al., `Make Sharpness-Aware Minimization Stronger: A Sparsified
    Perturbation Approach <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_layers(rho=0.5)
  >>> loss = lambda w: (w['a'] * jnp.ones(1) * w['b'])[0]
  >>> w = {'a': jnp.float32(2.0), 'b': jnp.float32(3.0)}
  >>> u, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
  >>> {name: float(x) for name, x in u.items()}  # b is 3.5 there
  {'a': 3.5, 'b': 2.0}
  """
  selection.check_size('fraction', fraction)
  is_whole = isinstance(fraction, float) and fraction == 1
  examples = selection.all_examples() if is_whole else random_subset(fraction)

  def build(mask: partition.Mask) -> optax.GradientTransformationExtraArgs:
    return sharpness_aware(
      scale_to_radius(rho),
      selection=share_forward(examples),
      mask=mask,
      axis_name=axis_name,
      sync_ascent=sync_ascent,
    )

  validation.check_static('layers', layers)
  is_share = validation.is_python_number(layers)
  if is_share:
    _check_share('layers', layers)

  def choose(view: LossView, params: optax.Params) -> Any:
    w, movable = view.leaves.split(params), view.leaves.movable
    if not is_share:
      chosen = partition.chosen_leaves(layers, w, 'layers')
      return _mask(view, jax.tree.leaves(chosen))
    takes_value = view.value_fn is not None or view.grad_fn is None
    order = read_order(view.value if takes_value else view.value_and_grad, w)
    # None has no leaves: all may be perturbed.
    allowed = jax.tree.leaves(movable) or [True] * len(order)
    order = [i for i in order if allowed[i]]
    return _mask(view, _last(order, cast(float, layers), len(allowed)))

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    narrowed = mask
    if params is not None:  # otherwise the method raises
      given = gradient.gradient_like(updates, params)
      view = LossView.open(
        params, given, extra_args, mask=mask, axis_name=axis_name
      )
      view.check_given()
      narrowed = choose(view, params)
      if isinstance(mask, Trainable):
        narrowed = mask._replace(among=narrowed)
    return build(narrowed).update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(build(mask).init, update)


def choose_leaves(
  per_example_value_fn: Callable[[optax.Params, Any], jax.Array],
  params: optax.Params,
  batch: Any,
  share: float,
  *,
  by: str = 'fisher',
) -> Any:
  """Chooses a fraction of the leaves: a mask for any method.

  By Fisher information, it chooses the leaves whose entries have the largest
  mean squared gradient of single examples; by depth, the last leaves in the
  order in which the loss reads them. Call it outside of the compiled step, in
  which the mask is a constant. To refresh the mask, call it again, and build
  and compile the step again; the state of `sparse_sam_layers` does not depend
  on it.

  Args:
    per_example_value_fn: from the parameters and a batch to the per-example
      losses, shape (B,).
    params: the parameters.
    batch: the examples; by depth, their number does not matter.
    share: fraction of the floating-point leaves to choose, in (0, 1]; at least
      one is chosen.
    by: 'fisher' or 'depth'.

  Returns:
    A tree of Python bools like `params`.

  >>> import jax.numpy as jnp, optax_sam
  >>> params = {'a': jnp.ones((3, 3)), 'b': jnp.ones((3, 3))}
  >>> losses = lambda p, x: jnp.sum(jnp.tanh(x @ p['b']) @ p['a'], axis=1)
  >>> optax_sam.choose_leaves(losses, params, jnp.ones((4, 3)), 0.5, by='depth')
  {'a': True, 'b': False}
  """
  _check_share('share', share)
  validation.check_choice('by', by, ('fisher', 'depth'))
  view = LossView(
    per_example_value_fn=per_example_value_fn,
    batch=jax.tree.map(jnp.asarray, batch),
    leaves=partition.Leaves.of(params),
    params=params,
  )
  w, count = view.leaves.split(params), view.num_examples
  if by == 'depth':
    order = read_order(view.losses, w)
  else:
    sums = jax.jit(lambda w: fisher_information(view, w, count))(w)
    scores = [float(jnp.mean(x)) for x in jax.tree.leaves(sums)]
    order = sorted(range(len(scores)), key=scores.__getitem__)
  return _mask(view, _last(order, share, len(order)))


def _check_share(name: str, value: Any) -> None:
  validation.check_static(name, value)
  if not validation.is_python_number(value) or not 0 < value <= 1:
    msg = (
      f'{name} must be a fraction of the leaves in (0, 1], got {value!r}: '
      f'write {name}=0.5 for half of them.'
    )
    raise ValueError(msg)


def _last(order: list[int], share: float, count: int) -> list[bool]:
  """Returns for each of `count` leaves whether it is among the last ones."""
  chosen = set(order[len(order) - max(1, round(share * len(order))) :])
  return [i in chosen for i in range(count)]


def _mask(view: LossView, chosen: list[bool]) -> Any:
  """Returns a mask like the parameters; leaves that may not move are False."""
  leaves, structure = view.leaves, jax.tree.structure
  mask = jax.tree.unflatten(structure(leaves.split(view.params)), chosen)
  if leaves.movable is not None:
    mask = jax.tree.map(bool.__and__, mask, leaves.movable)
  return leaves.join(mask, jax.tree.map(lambda _: False, view.params))
