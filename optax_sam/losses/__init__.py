"""Losses that hold a network to what it said earlier: one gradient a step.

Not elements of a chain: terms that are added to a loss, and what they keep. A
step reads before it writes, so that its target is never its own output::

    loss = own loss + term.loss(logits, ...)    # inside the gradient
    state = term.update(..., state, ...)        # SAF: after it, MESA: before

Both are divergences of a target `y` from the logits `z` of the step, softened
by the temperature `tau`, and zero where both say the same::

    weight * tau**2 * mean KL(softmax(y / tau) || softmax(z / tau))
    gradient to z: weight * tau * (softmax(z / tau) - softmax(y / tau)) / B

No gradient goes to `y`. Rows without a target, or of which `is_example` is
false, add nothing, but count as rows in the mean. All of it is computed in
float32, or in float64 for float64 logits.
"""

from optax_sam.losses.mesa import MesaLoss, MesaState, mesa_loss
from optax_sam.losses.saf import SafLoss, SafState, saf_loss

__all__ = [
  'MesaLoss',
  'MesaState',
  'SafLoss',
  'SafState',
  'mesa_loss',
  'saf_loss',
]
