"""Ordered SGD: uses the examples with the largest losses."""

from typing import Any

import optax

from optax_sam import validation
from optax_sam.engine.selection import check_size, top_k
from optax_sam.engine.sharpness_aware import sharpness_aware


@validation.method('k')
def ordered_sgd(
  *, k: float, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
  r"""Ordered SGD: uses the examples with the largest losses.

  Nothing is perturbed. :math:`Q` is the set of the k examples of the batch with
  the largest losses, ranked as in `k_sam`.

  .. math::
    u &= \nabla \tfrac{1}{k} \sum_{i \in Q} \ell_i(w) \\
    E[u] &= \nabla \tfrac{1}{k} \sum_j c_j\, \ell_{(j)}(w) \\
    c_j &= \sum_{i<k} \tbinom{j-1}{i} \tbinom{n-j}{b-i-1} / \tbinom{n}{b}

  :math:`E` is over batches of b out of n examples, and :math:`\ell_{(j)}` are
  the training losses in descending order.

  Args:
    k: size of Q: a number of examples if an int of at least 1, a fraction of
      the batch in (0, 1] if a float; 1.0 is the base optimizer. The authors
      start with all and use 1/2, 1/4, 1/8, 1/16 of the batch once the training
      accuracy reaches 80, 90, 95, 99.5 %, without going back. `k` is static.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
      Each device ranks its own examples; under jit the ranking is global.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`; stateless, with 1 / 3 + `k`
    gradients a step, k as a fraction.

  .. note:: The authors' code ranks inside a full forward pass, where batch norm
    uses the whole batch; ours selects the examples before the pass.

  References:
    Kawaguchi, Lu, `Ordered SGD: A New Stochastic Optimization Framework for
    Empirical Risk Minimization <https://arxiv.org/abs/1907.04371>`_, 2020.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx, w = optax_sam.ordered_sgd(k=1), jnp.float32(0.0)
  >>> f, x = lambda w, x: jnp.square(w - x), jnp.array([1.0, -3.0, 2.0])
  >>> u, _ = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> float(u)  # of (w + 3)^2 alone
  6.0
  """
  check_size('k', k)
  return sharpness_aware(
    optax.set_to_zero(), selection=top_k(None, k), axis_name=axis_name
  )
