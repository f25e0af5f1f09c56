"""MESA: a term that holds a network to an average of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.trees import divergence, tree_math


class MesaState(NamedTuple):
  """What `mesa_loss` keeps.

  Attributes:
    average: moving average, like the parameters, float32 or wider.
  """

  average: optax.Params


class MesaLoss(NamedTuple):
  """The functions of `mesa_loss`; all of them are pure.

  Attributes:
    init: from the parameters to a state that starts at them.
    loss: from (logits, targets, is_example=None) to the term, a scalar; logits
      are those of the step, (B, classes), and targets those of the average.
    update: from (parameters, state) to the next state.
  """

  init: Callable[[optax.Params], MesaState]
  loss: Callable[..., jax.Array]
  update: Callable[[optax.Params, MesaState], MesaState]


def mesa_loss(
  temperature: float = 5.0,
  weight: float = 0.8,
  *,
  decay: float = 0.9998,
) -> MesaLoss:
  """Memory-efficient SAF (MESA): to agree with an average of the weights.

  With `v` starting at the first weights, at each step, tau the temperature and
  B the rows of the batch::

    v    = decay * v + (1 - decay) * w
    y    = logits of v in evaluation mode
    term = weight * tau**2 / B * sum KL(softmax(y / tau) || softmax(z / tau))

  with `z` the logits of `w` in training mode. You compute both; the average is
  updated before it is used::

    average = mesa.update(params, average)
    targets = model(average.average, batch, train=False)
    term = mesa.loss(logits, targets)

  With batch norm average the running statistics too, in one tree with the
  parameters, as the authors' program does with all that a network keeps.
  Leaves that aren't floating-point are taken over as they are. Weights that
  aren't finite are left out of the average.

  The paper's equations have no `tau**2`, the authors' program has it. The
  weight is the paper's, the program has 0.3; the decay is the program's, the
  paper gives a range. Whether the term starts late, as SAF's does, could not
  be confirmed: here it is there from the first step, where it is zero.

  On devices the average is split as the parameters are, and each computes the
  targets of its rows: nothing is sent.

  Args:
    temperature: tau, above 0; it softens both distributions.
    weight: of the term, at least 0.
    decay: weight of the past in the average, in [0, 1); beta in the paper. The
      average is of the last 1 / (1 - decay) steps, 5000 by default: take a
      smaller one for a short run, or its targets are those of the start.

  Returns:
    A `MesaLoss`. Cost: 4/3 gradients, and the average in float32 or wider.

  Raises:
    ValueError: if a Python value is out of range, or in `loss` if shapes don't
      fit.

  References:
    Du, Zhou, Feng, Tan, Zhou, `Sharpness-Aware Training for Free
    <https://arxiv.org/abs/2205.14083>`_, NeurIPS 2022; what we read is the
    submission.

  >>> import jax.numpy as jnp, optax_sam
  >>> mesa = optax_sam.mesa_loss(temperature=1.0, weight=1.0, decay=0.75)
  >>> state = mesa.init(jnp.zeros(2))
  >>> state = mesa.update(jnp.array([4.0, 0.0]), state)
  >>> state.average.tolist()
  [1.0, 0.0]
  >>> logits, targets = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.0, 3.0]]))
  >>> round(float(mesa.loss(logits, targets)), 4)  # log(2) - entropy of 1/4
  0.1308
  """
  divergence.check_settings(temperature, weight)
  validation.check_number('decay', decay, at_least=0, below=1)

  def init(params: optax.Params) -> MesaState:
    # Copies: both may be donated.
    return MesaState(
      jax.tree.map(
        lambda x: jnp.array(x, _kept_dtype(x)),
        params,
      )
    )

  @jax.jit
  def update(params: optax.Params, state: MesaState) -> MesaState:
    def leaf(w: jax.Array, v: jax.Array) -> jax.Array:
      if not tree_math.is_float(w):
        return w
      # So written, what doesn't change stays where it is to the bit.
      return v + jnp.asarray(1 - decay, v.dtype) * (w.astype(v.dtype) - v)

    average = jax.tree.map(leaf, params, state.average)
    floats = [x for x in jax.tree.leaves(params) if tree_math.is_float(x)]
    finite = jnp.isfinite(tree_math.norm(floats))
    return MesaState(tree_math.select(finite, average, state.average))

  def loss(
    logits: jax.Array, targets: jax.Array, is_example: Any = None
  ) -> jax.Array:
    divergence.check_logits(logits)
    if targets.shape != logits.shape:
      msg = (
        f'targets must have the shape of the logits, {logits.shape}, got '
        f'{targets.shape}: the logits of the average for the same batch.'
      )
      raise ValueError(msg)
    known = jnp.ones(len(logits), bool) if is_example is None else is_example
    return divergence.mean(logits, targets, known, temperature, weight)

  return MesaLoss(init, loss, update)


def _kept_dtype(leaf: Any) -> Any:
  return tree_math.wide_dtype(leaf) if tree_math.is_float(leaf) else leaf.dtype
