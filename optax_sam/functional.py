"""Functional-SAM: the Jacobian is perturbed, the loss of the outputs is not."""

from collections.abc import Callable
from typing import Any

import jax
import optax


def functional_grad_fn(
  outputs_fn: Callable[[optax.Params, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: optax.Params,
  batch: Any,
) -> Callable[[optax.Params], optax.Updates]:
  r"""Returns the gradient function of Functional-SAM, to pass as `grad_fn`.

  .. math::
    \begin{align*}
      c &= \partial \ell / \partial z \text{ at } z = F(w) \\
      \tilde g &= J_F(w + \epsilon)^\top c
    \end{align*}

  :math:`F(w)` are the outputs (logits) of the batch, :math:`J_F` is their
  Jacobian. SAM takes :math:`c` at :math:`w + \epsilon`; in language models this
  change of the gradient dominates, and SAM is worse than the base optimizer.
  The function works with any method and perturbation::

    grad_fn = optax_sam.functional_grad_fn(outputs_fn, loss_fn, params, batch)
    updates, state = tx.update(grads, state, params, grad_fn=grad_fn)

  Args:
    outputs_fn: from the parameters and the batch to the outputs, a pytree.
    loss_fn: from the outputs and the batch to the scalar loss.
    params: the unperturbed parameters.
    batch: the batch, a pytree.

  Returns:
    A function from parameters to a gradient like them. Each call costs a
    gradient. The first pass, at `params`, costs a forward pass, unless XLA
    merges it with that of your gradient.

  .. note::
    No code of the authors is public. A loss that is linear in the outputs gives
    SAM.

  References:
    Singh, Mobahi, Agarwala, Dauphin, `Avoiding Spurious Sharpness Minimization
    Broadens Applicability of SAM <https://arxiv.org/abs/2502.02407>`_, ICML
    2025.

  >>> import jax.numpy as jnp, optax_sam
  >>> outputs_fn, loss_fn = lambda w, x: w**2 * x, lambda z, x: jnp.sum(z**2)
  >>> given = outputs_fn, loss_fn, jnp.float32(1.0), jnp.float32(3.0)
  >>> float(optax_sam.functional_grad_fn(*given)(jnp.float32(2.0)))  # 12 * 6
  72.0
  """
  outputs = outputs_fn(params, batch)
  loss = lambda z: loss_fn(z, batch)
  cotangent = jax.grad(loss)(jax.lax.stop_gradient(outputs))

  def grad_fn(point: optax.Params) -> optax.Updates:
    _, pullback = jax.vjp(lambda w: outputs_fn(w, batch), point)
    return pullback(cotangent)[0]

  return grad_fn
