"""Losses and metrics of a task, by name or as functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.train.config import errors
from optax_sam.train.reports.results import Metric

# From outputs and targets of a batch to one value per example.
PerExample = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """The loss of a task, and the metric by which it is evaluated."""

  loss: PerExample  # in evaluation
  training_loss: PerExample  # the same with label smoothing
  metric: PerExample
  measured: Metric
  names: tuple[str | None, str | None]  # of loss and metric, None of functions


def _per_example(values: jax.Array) -> jax.Array:
  """Averages over positions, if an example has several."""
  if values.ndim == 1:
    return values
  return jnp.mean(values.reshape(len(values), -1), axis=1)


def cross_entropy(outputs: Any, targets: Any) -> jax.Array:
  """Returns the cross entropy of integer labels, in nats."""
  losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
  return _per_example(losses)


def accuracy(outputs: Any, targets: Any) -> jax.Array:
  """Returns 1 where the largest output is that of the label, else 0."""
  right = jnp.argmax(outputs, axis=-1) == targets
  return _per_example(right.astype(jnp.float32))


def mean_squared_error(outputs: Any, targets: Any) -> jax.Array:
  """Returns the squared error, the mean over the entries of an example."""
  return _per_example(jnp.square(outputs - targets))


def next_token(outputs: Any, tokens: Any) -> jax.Array:
  """Returns the cross entropy of each next token, the mean over positions.

  Outputs are (examples, positions, vocabulary); the last position has no next
  token and doesn't count.
  """
  return cross_entropy(outputs[:, :-1], tokens[:, 1:])


def token_accuracy(outputs: Any, tokens: Any) -> jax.Array:
  """Returns the fraction of next tokens with the largest output."""
  return accuracy(outputs[:, :-1], tokens[:, 1:])


LOSSES: dict[str, PerExample] = {
  'cross_entropy': cross_entropy,
  'mean_squared_error': mean_squared_error,
  'next_token': next_token,
}
METRICS: dict[str, tuple[PerExample | None, Metric]] = {
  'accuracy': (accuracy, Metric()),
  'mean_squared_error': (
    mean_squared_error,
    Metric('mean_squared_error', higher_is_better=False, percent=False),
  ),
  'token_accuracy': (token_accuracy, Metric('token_accuracy')),
  'loss': (None, Metric('loss', higher_is_better=False, percent=False)),
}
# The usual metric of each loss.
_USUAL = dict(zip(LOSSES, METRICS, strict=False))
_CLASSES = ('cross_entropy', 'accuracy')
_TOKENS = ('next_token', 'token_accuracy')


def build(
  loss: str | PerExample = 'cross_entropy',
  metric: str | PerExample | None = None,
  *,
  higher_is_better: bool | None = None,
  label_smoothing: float = 0.0,
) -> Objective:
  """Returns the objective of a task; for the arguments see `compare`."""
  if metric is None:
    metric = _USUAL.get(str(loss), 'loss')
  given: tuple[Any, ...] = (('loss', loss, LOSSES), ('metric', metric, METRICS))
  for argument, value, known in given:
    if not (value in known if isinstance(value, str) else callable(value)):
      msg = (
        f'{argument} {value!r} is unknown; choose one of {", ".join(known)}, '
        f'or give a function of outputs and targets'
      )
      raise ValueError(msg)
  if label_smoothing and loss != 'cross_entropy':
    msg = (
      f"label_smoothing={label_smoothing} needs loss='cross_entropy'; "
      f'leave it out'
    )
    raise ValueError(msg)
  found = LOSSES[loss] if isinstance(loss, str) else loss
  training = _smoothed(label_smoothing) if label_smoothing else found
  values, measured = _metric(metric, higher_is_better)
  names: Any = [x if isinstance(x, str) else None for x in (loss, metric)]
  return Objective(found, training, values or found, measured, tuple(names))


def _metric(
  metric: str | PerExample, higher: bool | None
) -> tuple[PerExample | None, Metric]:
  if isinstance(metric, str):
    values, measured = METRICS[metric]
    if higher not in (None, measured.higher_is_better):
      msg = (
        f'higher_is_better={higher} contradicts metric={metric!r}; leave it out'
      )
      raise ValueError(msg)
    return values, measured
  if higher is None:
    msg = (
      'metric is a function: say which direction is better, with '
      'higher_is_better=True or higher_is_better=False'
    )
    raise ValueError(msg)
  name = getattr(metric, '__name__', 'metric')
  if not name.isidentifier() or name == 'loss':  # such as <lambda>
    name = 'metric'
  return metric, Metric(name, higher, percent=False)


def _smoothed(smoothing: float) -> PerExample:
  def losses(outputs: Any, targets: Any) -> jax.Array:
    labels = jax.nn.one_hot(targets, outputs.shape[-1])
    labels = optax.smooth_labels(labels, smoothing)
    return _per_example(optax.softmax_cross_entropy(outputs, labels))

  return losses


def check(objective: Objective, outputs: Any, targets: Any) -> None:
  """Raises a ValueError if a model does not fit the targets.

  Outputs are the shapes for a batch of one example; targets are its targets.
  """
  for kind, name in zip(('loss', 'metric'), objective.names, strict=True):
    if name is not None and name != 'loss':
      _check_named(name, outputs, targets)
      continue
    try:
      found: Any = jax.eval_shape(getattr(objective, kind), outputs, targets)
    except (TypeError, ValueError) as error:
      msg = f'{kind} fails on outputs and targets: {errors.first_line(error)}'
      raise ValueError(msg) from error
    shape = getattr(found, 'shape', type(found).__name__)
    if shape != (1,):
      msg = (
        f'{kind} must return one value per example, shape (B,), not {shape} '
        f'for a batch of 1'
      )
      raise ValueError(msg)


def check_broadcast(objective: Objective, outputs: Any, targets: Any) -> None:
  """Raises a ValueError if a function of the user mixes examples by accident.

  Shapes (B, 1) and (B,) broadcast to (B, B): then the loss of an example is a
  mean over all pairs, though it has the right shape.

  Args:
    objective: the functions.
    outputs: shapes of the outputs for some examples.
    targets: the targets of these examples.
  """
  shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(outputs)}
  count, target = len(targets), tuple(targets.shape)
  apart = [x for x in shapes if (*x, 1) == target or x == (*target, 1)]
  if not apart:
    return
  random = np.random.default_rng(0)
  drawn = jax.tree.map(
    lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), outputs
  )
  for kind, name in zip(('loss', 'metric'), objective.names, strict=True):
    if name is not None and name != 'loss':
      continue
    values = getattr(objective, kind)
    each = [
      values(jax.tree.map(lambda x, i=i: x[i : i + 1], drawn), targets[i:][:1])
      for i in range(count)
    ]
    whole = values(drawn, targets)
    if whole.shape != (count,) or not np.allclose(
      whole, jnp.concatenate(each), rtol=1e-3, equal_nan=True
    ):
      one, other = apart[0][1:], target[1:]
      msg = (
        f'{kind} must return one value per example, but mixes the examples: '
        f'for each example the outputs have shape {one} and the targets '
        f'{other}, which broadcast over the batch; reshape one of them, as in '
        f'outputs.reshape(targets.shape)'
      )
      raise ValueError(msg)


def _check_named(name: str, outputs: Any, targets: Any) -> None:
  shape, target = getattr(outputs, 'shape', None), targets.shape
  is_integer = jnp.issubdtype(targets.dtype, jnp.integer)
  if name != 'mean_squared_error' and not is_integer:
    msg = (
      f'{name} needs integer targets, not {targets.dtype}; convert the labels '
      f"by .astype('int32'), or give loss='mean_squared_error'"
    )
    raise ValueError(msg)
  fits = shape is not None and shape[:-1] == target
  if name in _CLASSES:
    needed = f'{(*target[1:], "classes")}'.replace("'", '')
  elif name in _TOKENS:
    fits = fits and len(target) == 2
    needed = '(positions, vocabulary) for tokens of shape (positions,)'
  else:
    fits, needed = shape == target, f'that of the targets, {target[1:]}'
  if not fits:
    given = 'no array' if shape is None else f'shape {shape[1:]}'
    msg = (
      f'model returns {given} for an example, and {name} needs {needed} with '
      f'targets of shape {target[1:]}; change the model or the targets'
    )
    raise ValueError(msg)


def check_labels(labels: np.ndarray, count: int, part: str) -> None:
  """Raises a ValueError if a label is not from 0 to `count` - 1."""
  for wrong in (int(labels.min()), int(labels.max())):
    if not 0 <= wrong < count:
      msg = (
        f'{part} has the label {wrong}, and the model has {count} outputs, for '
        f'labels from 0 to {count - 1}; change the labels or the model'
      )
      raise ValueError(msg)


def shown(measured: Metric, row: Mapping[str, float]) -> str:
  """Returns test metric and test loss of a row of evaluations, in words."""
  loss = f'test loss {row["test_loss"]:.4f}'
  if measured.name == 'loss':
    return loss
  value = row[f'test_{measured.name}']
  return f'test {measured.title} {measured.text(value)}, {loss}'
