"""SSAM-F: sparse SAM on the entries with the largest Fisher information."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.perturbation import on_refresh, scale_to_radius
from optax_sam.engine.selection import all_examples
from optax_sam.engine.sharpness_aware import Choices, compose
from optax_sam.trees import sparse_masks, tree_math

_FISHER_CHUNK = 16  # number of per-example gradients in memory


class TopFisherState(NamedTuple):
  """State of `keep_top_fisher`: `step_count` and `mask`, a tree of bools."""

  step_count: jax.Array
  mask: Any


def keep_top_fisher(
  sparsity: float = 0.5,
  *,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
) -> optax.GradientTransformationExtraArgs:
  """Zeroes entries by the mask of `optax_sam.sparse_sam_fisher`.

  After `scale_to_radius`, epsilon is shorter than rho, as in the authors' code;
  before it, epsilon is rho long. Only for use in `optax_sam.sharpness_aware`,
  whose `update` then needs `per_example_value_fn` and `batch`.
  """
  sparse_masks.check_fraction('sparsity', sparsity, at_most=1)
  validation.check_static_integer('num_samples', num_samples)
  validation.check_count('refresh_every', refresh_every)
  grouping = sparse_masks.parse_pattern(pattern)

  def init(params: optax.Params) -> TopFisherState:
    everything = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
    return TopFisherState(jnp.zeros((), jnp.int32), everything)

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    view = extra.get('loss_view')
    if view is None:
      msg = (
        'keep_top_fisher needs per-example gradients: use it in the '
        'perturbation of optax_sam.sharpness_aware.'
      )
      raise ValueError(msg)
    _ = view.num_examples  # checks the arguments, also without a refresh

    def refresh() -> Any:
      scores = fisher_information(view, params, num_samples)
      if grouping is None:
        kept = sparse_masks.num_kept(sparsity, tree_math.size(scores))
        mask = sparse_masks.largest(scores, kept)
      else:
        mask = jax.tree.map(lambda s: sparse_masks.n_of_m(s, *grouping), scores)
      finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(scores)]
      return optax.tree.where(jnp.all(jnp.array(finite)), mask, state.mask)

    count = state.step_count
    mask = on_refresh(count, refresh_every, refresh, lambda: state.mask)
    kept = jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, updates)
    return kept, TopFisherState(tree_math.increment(count), mask)

  return optax.GradientTransformationExtraArgs(init, update)


def fisher_information(view: LossView, params: Any, num_samples: int) -> Any:
  """Sums squared gradients of the first examples, over all devices."""
  if view.axis_name:
    num_samples = math.ceil(num_samples / jax.lax.psum(1, view.axis_name))
  samples = view.rows(slice(num_samples))
  local = devices.as_local(params, view.axis_name)

  def squared_gradient(row: Any) -> Any:
    one = jax.tree.map(lambda x: x[None], row)
    _, gradient = samples.on(one).value_and_grad(local)
    return jax.tree.map(lambda g: jnp.square(tree_math.widen(g)), gradient)

  def total(rows: Any) -> Any:
    squares = jax.vmap(squared_gradient)(rows)
    return jax.tree.map(lambda s: jnp.sum(s, axis=0), squares)

  scores = sum_over_chunks(total, samples.batch, _FISHER_CHUNK)
  return jax.lax.psum(scores, view.axis_name) if view.axis_name else scores


def keep_n_of_m(n: int, m: int) -> optax.GradientTransformation:
  """Zeroes all but the n largest of every m consecutive inputs of a unit.

  The inputs of a leaf are all of its axes but the last, flattened, as in the
  kernels of Flax: `(in, out)`, `(height, width, in, out)`. Entries with the
  largest `abs(g)` are left, the first ones of ties. A leaf with fewer than two
  axes, or whose inputs m does not divide, is unchanged. The authors group
  convolutions along another axis.

  Args:
    n: number of entries left in a group, a Python int in [1, m].
    m: number of entries of a group, a Python int.

  References:
    Mi et al., `Systematic Investigation of Sparse Perturbed Sharpness-Aware
    Minimization Optimizer <https://arxiv.org/abs/2306.17504>`_, 2023.
  """
  validation.check_static_integer('n', n)
  validation.check_static_integer('m', m, at_least=n)

  leaf = lambda g: jnp.where(sparse_masks.n_of_m(jnp.abs(g), n, m), g, 0)
  return optax.stateless(lambda updates, _: jax.tree.map(leaf, updates))


@validation.method('sparsity', 'num_samples')
def sparse_sam_fisher(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  sparsity: float = 0.5,
  num_samples: int = 128,
  refresh_every: int,
  pattern: str = 'global',
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""Sparse SAM by Fisher information (SSAM-F): perturbs what matters most.

  Of the N entries that may be perturbed, only the `floor((1 - sparsity) * N)`
  with the largest empirical Fisher information `F` are. All are updated; no
  time is saved.

  .. math::
    F &= \sum_j (\nabla \ell_j(w))^2 \\
    m &= 1 \text{ at the largest entries of } F \text{, else } 0 \\
    \epsilon &= \rho\, m g / (\|g\| + 10^{-12}), \quad g = \nabla L(w) \\
    \tilde g &= \nabla L(w + \epsilon)

  The mask is recomputed every `refresh_every` steps, step 0 included, from the
  losses of the first `num_samples` examples with true labels. Scores are
  compared in float32, ties broken by position; scores that are not finite leave
  the mask unchanged, at first full. The norm is of the whole gradient, so the
  perturbation is shorter than `rho`; for a constant length swap the components:
  `chain(keep_top_fisher(...), scale_to_radius(rho))`.

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's. The
      authors' README has 0.1 for CIFAR-10, and 0.7 for ImageNet, where their
      other code has 0.05 and 0.1: probably a slip.
    sparsity: fraction not perturbed, in [0, 1]: 0 is SAM, 1 the base optimizer.
      The authors advertise 0.5 and tried up to 0.99.
    num_samples: number of examples in F, at least 1, at most all of the batch.
      The authors' README has 16 and 128, and up to 1024.
    refresh_every: number of steps from one mask to the next, at least 1. The
      authors' README: one epoch; they tried 1 to 10.
    pattern: 'global', or for any `sparsity` 'n:m', such as '2:4', for the n
      largest of every m inputs of a unit; see `perturbations.keep_n_of_m`.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. Each device
      uses an equal number of its own examples in F.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`; state: a mask. It costs 2 +
    `num_samples` / (batch size * `refresh_every`) gradients, 16 at a time.

  .. note:: With batch norm pass a `value_fn` in training mode too, and let the
    per-example one use running statistics: one example has no variance. Rule
    and count are those of the authors' code, without its rounding (0 of 10
    entries at `sparsity=0.9`). Their code starts with an empty mask, refreshes
    it after the first step of an epoch, draws other examples, and adds the
    first example's gradient to an earlier one before squaring.

  References:
    Mi et al., `Make Sharpness-Aware Minimization Stronger: A Sparsified
    Perturbation Approach <https://arxiv.org/abs/2210.05177>`_, NeurIPS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.sparse_sam_fisher(sparsity=0.5, refresh_every=10)
  >>> f = lambda w, x: jnp.square(x @ w)
  >>> w, x = jnp.ones(4), jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> _, state = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> state.perturbation[1].mask.tolist()
  [False, True, False, True]
  """
  counts = {'num_samples': num_samples, 'refresh_every': refresh_every}
  keep = keep_top_fisher(sparsity, **counts, pattern=pattern)
  selection = all_examples()._replace(needs_examples=True)
  perturbation = optax.chain(scale_to_radius(rho), keep)
  choices = Choices(perturbation, selection=selection)
  return compose(choices, mask, axis_name, sync_ascent)
