"""Bi-LoRA: a second pair of adapters that ascends, of limited length."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import partition
from optax_sam.engine.perturbation import RadiusState
from optax_sam.trees import tree_math


def product_norm(factors: Any) -> jax.Array:
  r"""Returns :math:`\sqrt{\sum \|A B\|^2}` over all layers of a pytree.

  The two factors of a layer are the two arrays with a common parent in the
  tree, such as `lora_a` and `lora_b` of `nnx.LoRA`. Their product is not
  computed: the norm follows from two matrices of shape (rank, rank).

  Args:
    factors: pytree of factors, shapes (..., inputs, rank) and (..., rank,
      outputs) in either order; `optax.MaskedNode` and None are left out.

  Returns:
    A scalar.

  >>> layer = {'a': jnp.ones((3, 1)), 'b': jnp.full((1, 4), 2.0)}
  >>> round(float(product_norm({'one': layer, 'two': layer})), 4)  # 2 * 24**0.5
  9.798
  """
  layers: dict[str, list[jax.Array]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(factors):
    layer = '/'.join(partition.path_parts(path)[:-1])
    layers.setdefault(layer, []).append(leaf)
  squares = [_squared_product(name, pair) for name, pair in layers.items()]
  return jnp.sqrt(sum(squares[1:], squares[0])) if squares else jnp.zeros(())


def _squared_product(name: str, pair: list[jax.Array]) -> jax.Array:
  shapes = [x.shape for x in pair]
  orders = {}
  if len(pair) == 2 and min(map(len, shapes)) >= 2:
    for left, right in (pair, pair[::-1]):
      if left.shape[-1] == right.shape[-2]:
        orders.setdefault(left.shape[-1], []).append((left, right))
  # Both orders fit if a kernel is square; its rank is the smaller inner size.
  fitting = orders[min(orders)] if orders else []
  if len(fitting) != 1 or shapes[0][:-2] != shapes[1][:-2]:
    msg = (
      f'factors must hold two matrices for each layer, of shapes (inputs, '
      f'rank) and (rank, outputs), got {shapes} at {name!r}.'
    )
    raise ValueError(msg)
  left, right = (tree_math.widen(x) for x in fitting[0])
  inner = jnp.swapaxes(left, -1, -2) @ left
  outer = right @ jnp.swapaxes(right, -1, -2)
  # Rounding may give a small number below zero.
  return jnp.maximum(jnp.sum(inner * outer), 0)


def clip_products(
  rho: optax.ScalarOrSchedule, mask: partition.Mask = None
) -> optax.GradientTransformation:
  r"""Limits the length of all products of factors after a step to rho.

  With the factors after the update and :math:`c = \sqrt{\sum \|A B\|^2}` over
  all layers, all factors are multiplied by :math:`\sqrt{\rho / c}` if
  :math:`c > \rho`. Place it last in a chain: it needs the whole update.

  Args:
    rho: largest length of the products, at least 0, or a schedule of it.
    mask: which leaves are factors: a tree of bools that is a prefix of the
      parameters, or a function from the parameters to one; None for all.

  Returns:
    A gradient transformation, stateless unless rho is a schedule.

  >>> tx = clip_products(6.0)
  >>> params = {'a': jnp.ones((4, 1)), 'b': jnp.ones((1, 9))}
  >>> updates = {'a': jnp.zeros((4, 1)), 'b': jnp.full((1, 9), 3.0)}  # c is 24
  >>> updates, _ = tx.update(updates, tx.init(params), params)
  >>> updates['a'][0].tolist(), updates['b'][0, :2].tolist()  # halves both
  ([-0.5], [1.0, 1.0])
  """
  validation.check_radius(rho)

  def init(params: optax.Params) -> RadiusState | optax.EmptyState:
    # Checks the shapes before the first step.
    product_norm(_factors(mask, params))
    if callable(rho):
      return RadiusState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, RadiusState | optax.EmptyState]:
    if params is None:
      msg = 'params must be given: write tx.update(grads, opt_state, params).'
      raise ValueError(msg)
    radius = rho
    if callable(rho):
      radius = validation.at_step(rho, state.step_count)
      state = RadiusState(tree_math.increment(state.step_count))
    chosen = partition.chosen_leaves(mask, params)
    moves, w = partition.keep(chosen, updates), partition.keep(chosen, params)
    after = jax.tree.map(jnp.add, w, optax.tree.cast_like(moves, w))
    size = product_norm(after)
    radius = jnp.asarray(radius, size.dtype)
    is_long = size > radius
    factor = jnp.sqrt(radius / jnp.where(is_long, size, 1))

    def clip(move: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
      short = (factor * end.astype(factor.dtype)).astype(end.dtype) - start
      return jnp.where(is_long, short.astype(move.dtype), move)

    moves = jax.tree.map(clip, moves, w, after)
    return partition.fill(chosen, moves, updates), state

  return optax.GradientTransformation(init, update)


def _factors(mask: partition.Mask, params: optax.Params) -> optax.Params:
  return partition.keep(partition.chosen_leaves(mask, params), params)


def bi_lora(
  base: optax.GradientTransformation,
  labels: Any,
  *,
  rho: optax.ScalarOrSchedule,
  ascent: Hashable = 'ascent',
  frozen: Hashable = 'frozen',
) -> optax.GradientTransformationExtraArgs:
  r"""Bi-LoRA: a second pair of adapters ascends, and perturbs the first.

  A layer has the kernel :math:`W + A_1 B_1 + A_2 B_2`. One gradient is taken at
  this point, of all four factors; :math:`A_1, B_1` descend, :math:`A_2, B_2`
  ascend, each by the base optimizer. Then with :math:`c = \sqrt{\sum \|A_2
  B_2\|^2}` over all layers, all :math:`A_2` and :math:`B_2` are multiplied by
  :math:`\sqrt{\rho / c}` if :math:`c > \rho`. After training drop :math:`A_2
  B_2`: evaluate and `merge` the first pair alone.

  The perturbation :math:`A_2 B_2` changes from step to step, and is not a
  function of the current batch alone. It starts at 0 if :math:`B_2` does.

  Args:
    base: the optimizer of both pairs, with its learning rate.
    labels: the `param_labels` of `optax.partition`: a tree of labels that is a
      prefix of the parameters, or a function from the parameters to one.
    rho: :math:`\rho`, largest length of the products, at least 0, or a schedule
      of it by the step. It does not include a scale of the adapters (alpha /
      rank).
    ascent: the label of :math:`A_2` and :math:`B_2`. The two factors of a layer
      have a common parent in the tree of parameters, with no other array.
    frozen: the label of leaves that are not trained. All others descend. It
      may be absent if there is one other label.

  Returns:
    An optimizer; 1 gradient a step, and the state of the base for both pairs.

  .. note::
    The program of the authors could not be read. We negate the gradient before
    the base optimizer, so that weight decay shortens both pairs.

  References:
    Liu et al., `Bi-LoRA: Efficient Sharpness-Aware Minimization for Fine-Tuning
    Large-Scale Models <https://arxiv.org/abs/2508.19564>`_, ICLR 2026.

  >>> layer = {'a': jnp.ones((3, 1)), 'b': jnp.zeros((1, 3))}
  >>> params = {'w': jnp.eye(3), 'lora': layer, 'second': layer}
  >>> labels = {'w': 'frozen', 'lora': 'lora', 'second': 'ascent'}
  >>> tx = bi_lora(optax.sgd(1.0), labels, rho=9.0)
  >>> grads = {
  ...   **params,
  ...   'lora': layer,
  ...   'second': {**layer, 'b': layer['b'] + 4},
  ... }
  >>> updates, _ = tx.update(grads, tx.init(params), params)
  >>> params = optax.apply_updates(params, updates)
  >>> round(float(product_norm(params['second'])), 4)  # 12 without the limit
  9.0
  """
  validation.check_base(base)

  def of(params: optax.Params) -> Any:
    found = labels(params) if callable(labels) else labels
    _check_labels(set(jax.tree.leaves(found)), ascent, frozen)
    kinds = {ascent: 'ascend', frozen: 'freeze'}
    return jax.tree.map(lambda label: kinds.get(label, 'descend'), found)

  def is_ascending(params: optax.Params) -> Any:
    return jax.tree.map(lambda kind: kind == 'ascend', of(params))

  parts: dict[Hashable, optax.GradientTransformation] = {
    'descend': base,
    'ascend': optax.chain(optax.scale(-1.0), base),
    'freeze': optax.set_to_zero(),
  }
  return optax.chain(
    optax.partition(parts, of), clip_products(rho, is_ascending)
  )


def _check_labels(
  found: set[Hashable], ascent: Hashable, frozen: Hashable
) -> None:
  names = sorted(map(str, found))
  if ascent not in found:
    msg = f'ascent must be one of the labels {names}, got {ascent!r}.'
    raise ValueError(msg)
  # With one other label nothing is frozen; with more, one may be misspelled.
  if frozen not in found and len(found) > 2:
    msg = (
      f'frozen must be one of the labels {names}, got {frozen!r}: else all '
      f'leaves are trained. If they should be, give those that descend one '
      f'label.'
    )
    raise ValueError(msg)
