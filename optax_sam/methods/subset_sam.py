"""SAM with an ascent gradient over a subset of the batch."""

from typing import Any, NamedTuple

import jax
import optax

from optax_sam import validation
from optax_sam.engine import partition, selection
from optax_sam.engine.info import no_state
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import Choices, compose


class RandomSubsetState(NamedTuple):
  """State of `random_subset` with a `key`, from which all draws derive."""

  key: jax.Array


def random_subset(
  fraction: float, key: jax.Array | int | None = None
) -> selection.Selection:
  """Computes the ascent gradient over a part: see `optax_sam.subset_sam`."""
  selection.check_size('fraction', fraction)
  if key is not None:
    validation.check_key(key)

  def init(params: optax.Params) -> RandomSubsetState | optax.EmptyState:
    if key is None:
      return no_state(params)
    return RandomSubsetState(validation.as_key(key))

  def select(view: LossView, params: Any, state: Any, count: Any) -> Any:
    size = selection.num_examples(fraction, view.num_examples)
    rows = slice(size)
    if key is not None:
      draw = jax.random.fold_in(state.key, count)
      rows = jax.random.permutation(draw, view.num_examples)[:size]
    return selection.Selected(view.rows(rows), lambda _: view)

  return selection.Selection(init, select, needs_examples=True)


@validation.method('fraction')
def subset_sam(
  rho: optax.ScalarOrSchedule = 0.05,
  *,
  fraction: float = 0.25,
  key: jax.Array | int | None = None,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  r"""SAM with an ascent gradient over a subset of the batch.

  The ascent gradient is over a part :math:`A` of the batch, which batch norm
  normalizes separately. Each device takes it from its own examples.

  .. math::
    \epsilon &= \rho\, g / (\|g\| + 10^{-12}), \quad g = \nabla L_A(w) \\
    \tilde g &= \nabla L(w + \epsilon)

  Args:
    rho: radius, at least 0, or a schedule of it by the step; 0.05 is SAM's. The
      authors are quoted with 0.02 to 0.3: 0.05 for T5 small, 0.15 for larger.
    fraction: size of A: a fraction of the batch in (0, 1] if a float, a number
      of examples if an int of at least 1. The authors report a quarter to be
      about 25 % slower than plain descent.
    key: integer seed or typed key, the same on all devices, to draw A without
      replacement, as for sorted or packed batches; None uses the first rows.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`; state: the key, if given. It costs
    1 + `fraction` gradients, 1 / 3 more if you use the loss at `w`.

  .. note:: Unverified: whether the paper takes the first rows or draws A.

  References:
    Bahri, Mobahi, Tay, `Sharpness-Aware Minimization Improves Language Model
    Generalization <https://arxiv.org/abs/2110.08529>`_, ACL 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.subset_sam(rho=0.5, fraction=1)
  >>> f = lambda w, x: jnp.square(w - x)
  >>> w, x = jnp.float32(0.0), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> float(u)  # the mean over the batch at -0.5, away from its first example
  -1.0
  """
  selection = random_subset(fraction, key)
  choices = Choices(scale_to_radius(rho), selection=selection)
  return compose(choices, mask, axis_name, sync_ascent)
