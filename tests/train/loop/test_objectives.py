import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.train.loop import objectives
from optax_sam.train.reports.results import Metric

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(5, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def log_softmax(x):
  return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def test_cross_entropy_and_accuracy():
  found = objectives.build()
  expected = [
    -log_softmax(row)[y] for row, y in zip(LOGITS, LABELS, strict=True)
  ]
  np.testing.assert_allclose(found.loss(LOGITS, LABELS), expected, rtol=1e-5)
  right = [
    float(np.argmax(row) == y) for row, y in zip(LOGITS, LABELS, strict=True)
  ]
  np.testing.assert_array_equal(found.metric(LOGITS, LABELS), right)
  assert found.measured == Metric('accuracy', True, True)
  smooth = objectives.build(label_smoothing=0.3)
  expected = [
    -np.sum((0.7 * np.eye(3)[y] + 0.1) * log_softmax(row))
    for row, y in zip(LOGITS, LABELS, strict=True)
  ]
  np.testing.assert_allclose(
    smooth.training_loss(LOGITS, LABELS), expected, rtol=1e-5
  )
  assert smooth.loss is found.loss


def test_mean_squared_error_is_the_mean_over_an_example():
  found = objectives.build('mean_squared_error')
  targets = RANDOM.normal(size=(5, 3)).astype(np.float32)
  expected = np.mean((LOGITS - targets) ** 2, axis=1)
  np.testing.assert_allclose(found.loss(LOGITS, targets), expected, rtol=1e-5)
  one = found.loss(LOGITS[:, 0], targets[:, 0])
  np.testing.assert_allclose(one, (LOGITS - targets)[:, 0] ** 2, rtol=1e-5)
  assert found.metric is found.loss
  assert not found.measured.higher_is_better


def test_next_token_compares_with_the_following_position():
  found = objectives.build('next_token')
  tokens = RANDOM.integers(7, size=(2, 4))
  logits = RANDOM.normal(size=(2, 4, 7)).astype(np.float32)
  losses, right = np.zeros(2), np.zeros(2)
  for example in range(2):
    for position in range(3):
      row, token = logits[example, position], tokens[example, position + 1]
      losses[example] -= log_softmax(row)[token] / 3
      right[example] += (np.argmax(row) == token) / 3
  np.testing.assert_allclose(found.loss(logits, tokens), losses, rtol=1e-5)
  np.testing.assert_allclose(found.metric(logits, tokens), right, rtol=1e-5)
  assert found.measured.name == 'token_accuracy'


def test_functions_as_loss_and_metric():
  def rank(outputs, targets):
    return jnp.sum(outputs, axis=1) + targets

  found = objectives.build(rank)
  assert (found.measured.name, found.metric) == ('loss', rank)
  found = objectives.build(metric=rank, higher_is_better=False)
  assert found.measured == Metric('rank', False, percent=False)
  found = objectives.build(metric=lambda f, y: f - y, higher_is_better=True)
  assert found.measured.name == 'metric'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'loss': 'hinge'}, "loss 'hinge' is unknown; choose one of cross_entropy"),
    ({'loss': 3}, 'loss 3 is unknown'),
    ({'metric': 'auc'}, "metric 'auc' is unknown; choose one of accuracy"),
    ({'metric': len}, 'higher_is_better=True or higher_is_better=False'),
    ({'metric': 'loss', 'higher_is_better': True}, 'contradicts metric='),
    ({'loss': len, 'label_smoothing': 0.1}, "needs loss='cross_entropy'"),
  ],
)
def test_invalid_objectives_raise(arguments, message):
  with pytest.raises(ValueError, match=message):
    objectives.build(**arguments)


@pytest.mark.parametrize(
  ('loss', 'outputs', 'targets', 'message'),
  [
    ('cross_entropy', (1,), ((1,), int), r'needs \(classes,\) with targets of'),
    (
      'cross_entropy',
      (1, 3),
      ((1,), float),
      'needs integer targets, not float',
    ),
    ('cross_entropy', (1, 3), ((1, 1), int), r'returns shape \(3,\) for an ex'),
    ('mean_squared_error', (1, 1), ((1,), float), r'that of the targets, \(\)'),
    ('next_token', (1, 8), ((1, 4), int), r'needs \(positions, vocabulary\)'),
    (
      lambda f, y: jnp.mean(f - y),
      (1, 3),
      ((1,), int),
      r'shape \(B,\), not \(\)',
    ),
    (
      lambda f, y: f @ f + y,
      (1, 3),
      ((1,), int),
      'loss fails on outputs and targ',
    ),
  ],
)
def test_outputs_that_do_not_fit_raise(loss, outputs, targets, message):
  shape, dtype = targets
  with pytest.raises(ValueError, match=message) as caught:
    objectives.check(
      objectives.build(loss),
      jax.ShapeDtypeStruct(outputs, jnp.float32),
      jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
    )
  assert '\n' not in str(caught.value)


def test_losses_that_broadcast_over_the_batch_raise():
  outputs = jax.ShapeDtypeStruct((3, 1), jnp.float32)
  targets = np.arange(3.0)
  for wrong in (
    lambda f, y: jnp.mean((f - y) ** 2, axis=-1),
    lambda f, y: ((f - y) ** 2).ravel(),
  ):
    with pytest.raises(
      ValueError, match=r'mixes the examples.*outputs.reshape'
    ):
      objectives.check_broadcast(objectives.build(wrong), outputs, targets)
  right = lambda f, y: (f[:, 0] - y) ** 2
  objectives.check_broadcast(objectives.build(right), outputs, targets)
  # An in-batch loss, such as a contrastive one, of outputs like the targets.
  other = lambda f, y: jax.nn.softmax(f) * y
  objectives.check_broadcast(
    objectives.build(other), jax.ShapeDtypeStruct((3,), jnp.float32), targets
  )


@pytest.mark.parametrize('label', [-1, 3])
def test_labels_outside_of_the_classes_raise(label):
  with pytest.raises(ValueError, match=f'test has the label {label}, and the'):
    objectives.check_labels(np.array([0, label, 2]), 3, 'test')
