"""MESA: an auxiliary loss that compares a network with its weight average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.trees import divergence, tree_math


class MesaState(NamedTuple):
  """State of `mesa_loss`: `average`, like the parameters, float32 or wider."""

  average: optax.Params


class MesaLoss(NamedTuple):
  """The functions of `mesa_loss`; all of them are pure.

  `init(params)` returns a state that starts at the parameters,
  `update(params, state)` the next state. `loss(logits, targets, epoch,
  is_example=None)` returns the auxiliary loss: `logits` of the step and
  `targets`, the logits of the average, have shape (B, classes); `epoch` is from
  0 on, and `is_example`, bool (B,), is False for padding.
  """

  init: Callable[[optax.Params], MesaState]
  loss: Callable[..., jax.Array]
  update: Callable[[optax.Params, MesaState], MesaState]


def mesa_loss(
  temperature: float = 5.0,
  weight: float = 0.8,
  *,
  decay: float = 0.9998,
  start_epoch: int = 5,
) -> MesaLoss:
  r"""Memory-efficient SAF (MESA): agreement with an average of the weights.

  From epoch `start_epoch`, MESA adds an auxiliary loss :math:`D`, which is
  the divergence of the outputs of the network from those of a moving average
  :math:`v` of its weights.

  .. math::
    \begin{align*}
      v &\leftarrow \beta v + (1 - \beta)\, w \\
      D &= (\lambda \tau^2 / B) \sum_i \text{KL}(
        \text{softmax}(y_i / \tau) \,\|\, \text{softmax}(z_i / \tau))
    \end{align*}

  :math:`z` are the logits of :math:`w` in training mode, :math:`y` those of
  :math:`v` in evaluation mode, for the B rows of the batch. :math:`v` starts at
  the first weights and is updated at every step, also before `start_epoch`. You
  compute both logits, and call `update` before `loss`::

    average = mesa.update(params, average)
    targets = model(average.average, batch, train=False)
    loss = loss + mesa.loss(logits, targets, epoch)

  With batch norm, average the running statistics too, in one tree with the
  parameters, as the authors' code does. Leaves that are not floating-point are
  copied, and weights that are not finite are not averaged. On several devices
  the average is split like the parameters, without communication.

  Args:
    temperature: :math:`\tau`, above 0; it softens both distributions.
    weight: :math:`\lambda`, at least 0. 0.8 is the paper's, and that of the
      authors' documented run.
    decay: :math:`\beta`, in [0, 1). The average is over the last
      1 / (1 - decay) steps, 5000 by default: use a smaller decay for a short
      run, or its targets are those of the start.
    start_epoch: first epoch with the loss, from 0; the authors use 5, or 30 %
      of the epochs.

  Returns:
    A `MesaLoss`, whose state is the average; a step costs 4 / 3 gradients.

  .. note::
    The decay and :math:`\tau^2` are those of the authors' code: the paper gives
    a range, and its equations have no :math:`\tau^2`. 0.3 is only the default
    weight of its command line. The code starts one epoch later, as with SAF,
    and drops the loss from epoch 360 on; here it stays.

  References:
    Du, Zhou, Feng, Tan, Zhou, `Sharpness-Aware Training for Free
    <https://arxiv.org/abs/2205.14083>`_, NeurIPS 2022; we read the submission.

  >>> import jax.numpy as jnp, optax_sam
  >>> mesa = optax_sam.mesa_loss(temperature=1.0, weight=1.0, decay=0.75)
  >>> state = mesa.init(jnp.zeros(2))
  >>> state = mesa.update(jnp.array([4.0, 0.0]), state)
  >>> state.average.tolist()
  [1.0, 0.0]
  >>> logits, targets = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.0, 3.0]]))
  >>> loss = [float(mesa.loss(logits, targets, epoch)) for epoch in (4, 5)]
  >>> [round(x, 4) for x in loss]  # log(2) - entropy of 1/4
  [0.0, 0.1308]
  """
  divergence.check_settings(temperature, weight)
  validation.check_number('decay', decay, at_least=0, below=1)
  validation.check_count('start_epoch', start_epoch, at_least=0)

  def init(params: optax.Params) -> MesaState:
    def leaf(w: jax.Array) -> jax.Array:
      is_float = tree_math.is_float(w)
      # A copy: both may be donated.
      return jnp.array(w, tree_math.wide_dtype(w) if is_float else w.dtype)

    return MesaState(jax.tree.map(leaf, params))

  def update(params: optax.Params, state: MesaState) -> MesaState:
    def leaf(w: jax.Array, v: jax.Array) -> jax.Array:
      if not tree_math.is_float(w):
        return w
      # In this form, an average equal to the weights stays the same bit by bit.
      return v + jnp.asarray(1 - decay, v.dtype) * (w.astype(v.dtype) - v)

    average = jax.tree.map(leaf, params, state.average)
    floats = [x for x in jax.tree.leaves(params) if tree_math.is_float(x)]
    finite = tree_math.all_finite(floats)
    return MesaState(optax.tree.where(finite, average, state.average))

  def loss(
    logits: Any, targets: Any, epoch: Any, is_example: Any = None
  ) -> jax.Array:
    divergence.check_logits(logits)
    divergence.check_epoch(epoch)
    if targets.shape != logits.shape:
      msg = (
        f'targets must have the shape of the logits, {logits.shape}, got '
        f'{targets.shape}: the logits of the average for the same batch.'
      )
      raise ValueError(msg)
    known = jnp.ones(len(logits), bool) if is_example is None else is_example
    known &= jnp.asarray(epoch) >= start_epoch
    return divergence.mean(logits, targets, known, temperature, weight)

  return MesaLoss(init, loss, update)
