"""Masks from labels: which leaves are trained, and which are perturbed."""

from collections.abc import Collection, Hashable
from typing import Any, NamedTuple

import jax
import optax


class Trainable(NamedTuple):
  """A mask from labels; see `trainable`.

  `among` is a tree of bools, False at leaves that are not perturbed even if
  their labels say so.
  """

  labels: Any
  frozen: frozenset[Hashable]
  perturbed: frozenset[Hashable] | None = None
  among: Any = None

  def __call__(self, params: optax.Params) -> Any:
    """Returns a prefix tree of bools, True at leaves that are trained."""
    labels, found = self._found(params)
    if not found & self.frozen or not found - self.frozen:
      msg = (
        f'frozen must name some of the labels, got {[*self.frozen]} for '
        f'the labels {sorted(map(str, found))}.'
      )
      raise ValueError(msg)
    return jax.tree.map(lambda label: label not in self.frozen, labels)

  def movable(self, params: optax.Params) -> Any:
    """Returns a prefix tree of bools, True at leaves that are perturbed."""
    if self.perturbed is None:
      return self(params)
    labels, found = self._found(params)
    chosen = self.perturbed
    if not found & chosen:
      msg = (
        f'perturbed must name a label of the parameters, got {[*chosen]} for '
        f'the labels {sorted(map(str, found))}.'
      )
      raise ValueError(msg)
    return jax.tree.map(lambda label: label in chosen, labels)

  def _found(self, params: optax.Params) -> tuple[Any, set[Hashable]]:
    labels = self.labels(params) if callable(self.labels) else self.labels
    return labels, set(jax.tree.leaves(labels))


def trainable(
  labels: Any,
  *,
  frozen: Hashable | Collection[Hashable],
  perturbed: Hashable | Collection[Hashable] | None = None,
) -> Trainable:
  r"""Turns labels of `optax.partition` into a mask that excludes frozen leaves.

  Without it, parameters that the base optimizer does not train would use up a
  part of the radius. Pass this mask to a method placed before the partition::

    optax.chain(
      optax_sam.sam(mask=optax_sam.trainable(labels, frozen='frozen')),
      optax.partition(
        {'adapters': optax.adam(1e-3), 'frozen': optax.set_to_zero()}, labels
      ),
    )

  Frozen leaves are excluded from norms, decisions and states, and no further
  gradients are computed for them: their incoming gradients are returned,
  averaged over devices. Leaves that any other `mask` excludes are trained by
  the gradient at the perturbed parameters.

  With `perturbed` some leaves are perturbed and others are updated, for example
  a frozen base and its adapters. Then :math:`\epsilon` and its norm are of the
  gradient of the perturbed leaves alone, and the direction is the gradient of
  the trained leaves at :math:`w + \epsilon`. In a compiled step, leaves that
  are only perturbed cost one weight gradient, for the ascent step. Directions
  that are computed from whole gradients, as in `gsam` or `look_sam`, include
  both kinds of leaves.

  Args:
    labels: the `param_labels` of `optax.partition`: a tree of labels that is a
      prefix of the parameters, or a function from the parameters to one.
    frozen: the label of parameters that are not trained, or a tuple, list or
      set of such labels.
    perturbed: the label or labels of parameters that are perturbed, frozen or
      not; by default all that are trained. `lookbehind`, `sampa` and
      `wsam_decoupled` do not take it.

  Returns:
    A mask: a function from the parameters to a tree of bools.

  Raises:
    ValueError: when the mask is used, if no parameter has a frozen label, or
      all have, or if none has a perturbed one.

  >>> labels = {'base': 'frozen', 'lora': 'adapters'}
  >>> trainable(labels, frozen='frozen')({'base': [1.0, 2.0], 'lora': 3.0})
  {'base': False, 'lora': True}

  Perturb the base, update the adapters:

  >>> import jax, jax.numpy as jnp, optax, optax_sam
  >>> labels = {'base': 'frozen', 'lora': 'adapters'}
  >>> mask = trainable(labels, frozen='frozen', perturbed='frozen')
  >>> method = optax_sam.sam(rho=0.5, mask=mask)
  >>> params = {'base': jnp.float32(2.0), 'lora': jnp.float32(3.0)}
  >>> loss = lambda p: p['base'] * p['lora'] ** 2
  >>> updates, _ = method.update(
  ...   jax.grad(loss)(params), method.init(params), params, value_fn=loss
  ... )
  >>> float(updates['lora'])  # 2 * (2 + 0.5) * 3
  15.0
  """
  chosen = None if perturbed is None else _as_set(perturbed)
  return Trainable(labels, _as_set(frozen), chosen)


def _as_set(label: Hashable | Collection[Hashable]) -> frozenset[Hashable]:
  many = isinstance(label, (tuple, list, set, frozenset))
  return frozenset(label) if many else frozenset([label])
