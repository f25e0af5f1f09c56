"""A training run as one compiled function of seed, learning rate, radius."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_sam
from benchmarks.evidence import problems
from benchmarks.evidence.variants import Variant
from optax_sam import sharpness
from optax_sam.train.data import datasets

# Radius of the sharpness measure, the same for all runs.
_MEASURED_RHO = 0.05


class Trained(NamedTuple):
  """A finished run and its data."""

  params: Any
  statistics: Any
  second_gradients: jax.Array
  train: Any
  validation: Any


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The results of a run; accuracies are fractions, losses in nats.

  Attributes:
    second_gradients: fraction of steps with a perturbed gradient.
    train_loss: over all training examples in evaluation mode, including wrong
      labels, like the training accuracy.
    validation_accuracy: over the validation examples.
    test_accuracy: over the test examples.
    test_loss: over the test examples.
    sam_sharpness: rise of the training loss after one ascent step of length
      0.05.
    top_eigenvalue: top eigenvalue of the Hessian of the training loss; NaN if
      not measured.
  """

  second_gradients: float
  train_loss: float
  validation_accuracy: float
  test_accuracy: float
  test_loss: float
  sam_sharpness: float = float('nan')
  top_eigenvalue: float = float('nan')


class Trainer:
  """Trains one variant on one problem, compiled once for all its runs."""

  def __init__(self, name: str, variant: Variant, probability: float):
    """Prepares the compiled function.

    Args:
      name: name of the problem.
      variant: the variant to train with.
      probability: probability of an ascent step, for variants that match the
        fraction of another one.
    """
    problem = problems.PROBLEMS[name]
    dataset = problems.load(problem.dataset)
    self._pool, self._test = dataset.train, dataset.test
    self._model = problem.model(dataset.classes)
    self._run = jax.jit(
      functools.partial(
        _train, problem, self._model, dataset.classes, variant, probability
      )
    )
    # One function for all runs, so that the measures compile once.
    self._value_fn = functools.partial(_evaluation_loss, self._model)
    self._evaluate = jax.jit(functools.partial(_evaluate, self._model))

  def outcome(
    self, seed: int, learning_rate: float, rho: float, *, measured: bool
  ) -> Outcome:
    """Trains once.

    Args:
      seed: seed of data, parameters and order.
      learning_rate: initial learning rate of the base optimizer.
      rho: radius of the method.
      measured: whether to measure sharpness.
    """
    trained = self._run(seed, learning_rate, rho, self._pool)
    found = {
      name: self._evaluate(trained.params, trained.statistics, batch)
      for name, batch in (
        ('train', trained.train),
        ('validation', trained.validation),
        ('test', self._test),
      )
    }
    measures = {}
    if measured:
      given = {'args': (trained.statistics, trained.train)}
      measures = {
        'sam_sharpness': sharpness.sam_sharpness(
          self._value_fn, trained.params, _MEASURED_RHO, **given
        ),
        'top_eigenvalue': sharpness.top_eigenvalue(
          self._value_fn, trained.params, tolerance=1e-2, **given
        ),
      }
    return Outcome(
      second_gradients=float(trained.second_gradients),
      train_loss=float(found['train'][0]),
      validation_accuracy=float(found['validation'][1]),
      test_accuracy=float(found['test'][1]),
      test_loss=float(found['test'][0]),
      **measures,
    )


def _train(
  problem: problems.Problem,
  model: Any,
  classes: int,
  variant: Variant,
  probability: float,
  seed: jax.Array,
  learning_rate: jax.Array,
  rho: jax.Array,
  pool: datasets.Batch,
) -> Trained:
  keys = jax.random.split(jax.random.key(seed), 5)
  draw_key, init_key, order_key, dropout_key, method_key = keys
  train, validation = problems.draw(draw_key, pool, problem, classes)
  epoch_steps = problem.examples // problem.batch_size
  epochs = variant.length * problem.steps // epoch_steps
  steps = epochs * epoch_steps
  method = variant.build(
    rho,
    total_steps=steps,
    refresh_every=epoch_steps,
    key=method_key,
    probability=probability,
  )
  tx = optax.with_extra_args_support(
    optax.chain(method, problem.optimizer(learning_rate, steps))
  )
  variables = dict(model.init(init_key, train['inputs'][:1], train=False))
  params = variables.pop('params')

  def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
    params, statistics, opt_state, count = carry
    batch = jax.tree.map(lambda values: values[rows], train)
    key = jax.random.fold_in(dropout_key, count)

    def losses(params: Any, batch: Any) -> tuple[jax.Array, Any]:
      return _losses(model, params, statistics, batch, key)

    def mean(params: Any) -> tuple[jax.Array, Any]:
      values, new_statistics = losses(params, batch)
      return jnp.mean(values), (values, new_statistics)

    grads, (values, new_statistics) = jax.grad(mean, has_aux=True)(params)
    updates, opt_state = tx.update(
      grads,
      opt_state,
      params,
      value_fn=lambda p: mean(p)[0],
      per_example_value_fn=lambda p, b: (
        _per_example_losses(model, p, statistics, b)
        if variant.takes_per_example_losses
        else losses(p, b)[0]
      ),
      batch=batch,
      losses=None if variant.takes_per_example_losses else values,
    )
    params = optax.apply_updates(params, updates)
    return (params, new_statistics, opt_state, count + 1), None

  def epoch(carry: Any, number: jax.Array) -> tuple[Any, None]:
    key = jax.random.fold_in(order_key, number)
    order = jax.random.permutation(key, problem.examples)
    batches = order[: epoch_steps * problem.batch_size]
    # A fraction of a shuffled batch is a random subset.
    kept = round(variant.batch_fraction * problem.batch_size)
    batches = batches.reshape(epoch_steps, problem.batch_size)[:, :kept]
    return jax.lax.scan(step, carry, batches)

  start = (params, variables, tx.init(params), jnp.zeros((), jnp.int32))
  end, _ = jax.lax.scan(epoch, start, jnp.arange(epochs))
  params, statistics, opt_state, count = end
  ascents: Any = 0
  if variant.is_method:
    ascents = optax_sam.metrics(opt_state)['second_gradients']
  return Trained(params, statistics, ascents / count, train, validation)


def _losses(
  model: Any, params: Any, statistics: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, Any]:
  logits, statistics = model.apply(
    {'params': params, **statistics},
    batch['inputs'],
    train=True,
    rngs={'dropout': key},
    mutable=list(statistics),
  )
  return _cross_entropy(logits, batch), statistics


def _per_example_losses(
  model: Any, params: Any, statistics: Any, batch: Any
) -> jax.Array:
  """Per-example losses in evaluation mode, because of batch norm."""
  variables = {'params': params, **statistics}
  logits = model.apply(variables, batch['inputs'], train=False)
  return _cross_entropy(logits, batch)


def _evaluation_loss(
  model: Any, params: Any, statistics: Any, batch: Any
) -> jax.Array:
  return jnp.mean(_per_example_losses(model, params, statistics, batch))


def _evaluate(
  model: Any, params: Any, statistics: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
  variables = {'params': params, **statistics}
  logits = model.apply(variables, batch['inputs'], train=False)
  right = jnp.argmax(logits, axis=-1) == batch['labels']
  losses = _cross_entropy(logits, batch)
  return jnp.mean(losses), jnp.mean(right, dtype=jnp.float32)


def _cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['labels']
  )
