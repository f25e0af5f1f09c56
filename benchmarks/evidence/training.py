"""A training run: one compiled function, whatever seed, rate and radius."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from benchmarks.evidence import problems
from benchmarks.evidence.problems import PARTS, Problem
from benchmarks.evidence.variants import Variant
from optax_sam import sharpness

# Length of the perturbations of the measures.
_MEASURED_RHO = 0.05
_NOT_MEASURED = float('nan')
_UNKNOWN = (_NOT_MEASURED, _NOT_MEASURED)
_EVALUATED_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The results of a run; scores as in `Problem.score`, losses in nats.

  Attributes:
    seconds: time of the run, with evaluation, measures and compilation.
    gradients: cost of a step, in gradients over a whole batch.
    second_gradients: fraction of steps with a perturbed gradient.
    train_loss: over some training examples in evaluation mode, including wrong
      labels.
    train_score: score of these examples.
    validation_loss: over the validation examples.
    validation_score: score of the validation examples.
    test_loss: over the test examples.
    test_score: score of the test examples.
    curve: validation scores after each part of the run, or only the last one.
    sam_sharpness: rise of the loss of some training examples after one ascent
      step of length 0.05.
    random_sharpness: its mean rise under noise relative to each parameter.
    rounding_rise: its rise when the weights are rounded to 4 bits.
    top_eigenvalue: top eigenvalue of its Hessian.
  """

  seconds: float
  gradients: float
  second_gradients: float
  train_loss: float
  train_score: float
  validation_loss: float
  validation_score: float
  test_loss: float
  test_score: float
  curve: str
  sam_sharpness: float = _NOT_MEASURED
  random_sharpness: float = _NOT_MEASURED
  rounding_rise: float = _NOT_MEASURED
  top_eigenvalue: float = _NOT_MEASURED


class Trainer:
  """Trains one variant on one problem, compiled once for all its runs."""

  def __init__(self, problem: Problem, variant: Variant, probability: float):
    """Prepares the compiled functions.

    Args:
      problem: the problem.
      variant: the variant to train with.
      probability: probability of an ascent step, for variants that match the
        fraction of another one.
    """
    self.problem, self.variant = problem, variant
    self.probability = probability
    pool = problems.load(problem.dataset)
    # The test examples may be in order.
    apart = max(1, len(pool.test['labels']) // problem.evaluated)
    self._test = jax.tree.map(lambda x: x[::apart], pool.test)
    self.model = _model(problem)
    self._cost: float | None = None
    self._start = jax.jit(self.start)
    self._part = jax.jit(self._train_part, donate_argnums=0)

  def transformation(self, settings: Any) -> Any:
    """Returns method and base optimizer."""
    problem, variant = self.problem, self.variant
    method = variant.build(
      settings['rho'],
      total_steps=settings['steps'],
      refresh_every=problem.examples // problem.batch_size,
      key=settings['key'],
      probability=self.probability,
    )
    base = problem.optimizer(settings['learning_rate'], settings['steps'])
    return optax.with_extra_args_support(optax.chain(method, base))

  def start(self, settings: Any, inputs: jax.Array) -> Any:
    """Returns the state before the first step."""
    key = jax.random.fold_in(settings['key'], 1)
    variables = dict(self.model.init(key, inputs, train=False))
    params = variables.pop('params')
    tx = self.transformation(settings)
    return params, variables, tx.init(params), jnp.zeros((), jnp.int32)

  def step(
    self, carry: Any, batch: Any, settings: Any
  ) -> tuple[Any, Any, Callable[[Any], jax.Array]]:
    """Takes one step; also returns its first gradient and its loss."""
    params, statistics, opt_state, count = carry
    variant = self.variant
    key = jax.random.fold_in(jax.random.fold_in(settings['key'], 2), count)

    def losses(params: Any, batch: Any) -> tuple[jax.Array, Any]:
      return _losses(self.model, params, statistics, batch, key)

    def mean(params: Any) -> tuple[jax.Array, Any]:
      values, new_statistics = losses(params, batch)
      return jnp.mean(values), (values, new_statistics)

    value_fn = lambda params: mean(params)[0]
    grads, (values, new_statistics) = jax.grad(mean, has_aux=True)(params)
    updates, opt_state = self.transformation(settings).update(
      grads,
      opt_state,
      params,
      value_fn=value_fn,
      per_example_value_fn=lambda p, b: (
        per_example_losses(self.model, p, statistics, b)
        if variant.takes_per_example_losses
        else losses(p, b)[0]
      ),
      batch=batch,
      losses=None if variant.takes_per_example_losses else values,
    )
    params = optax.apply_updates(params, updates)
    carry = params, new_statistics, opt_state, count + 1
    return carry, grads, value_fn

  def _train_part(
    self, carry: Any, data: Any, rows: jax.Array, settings: Any
  ) -> Any:
    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
      batch = jax.tree.map(lambda values: values[rows], data)
      return self.step(carry, batch, settings)[0], None

    return jax.lax.scan(step, carry, rows)[0]

  def settings(
    self, seed: int, learning_rate: float, rho: float, steps: int
  ) -> dict[str, Any]:
    """Returns the arguments of the compiled functions."""
    return {
      'key': jax.random.key(seed),
      'learning_rate': jnp.float32(learning_rate),
      'rho': jnp.float32(rho),
      'steps': jnp.int32(steps),
    }

  def outcome(
    self,
    seed: int,
    learning_rate: float,
    rho: float,
    parts: int,
    *,
    measured: bool,
  ) -> Outcome:
    """Trains once.

    Args:
      seed: seed of data, parameters and order.
      learning_rate: initial learning rate of the base optimizer.
      rho: radius of the method.
      parts: length of the run, in parts of the problem's.
      measured: whether to measure sharpness and all scores, not only the
        validation score at the end.
    """
    begin = time.perf_counter()
    problem, variant = self.problem, self.variant
    train, validation = (
      jax.tree.map(jnp.asarray, part) for part in problems.draw(problem, seed)
    )
    length = problem.steps // PARTS
    steps = parts * length
    # A fraction of a shuffled batch is a random subset.
    used = round(variant.batch_fraction * problem.batch_size)
    rows = problems.order(problem, seed, steps)[:, :used]
    settings = self.settings(seed, learning_rate, rho, steps)
    carry = self._start(settings, train['inputs'][:1])
    if variant.gradients is None and self._cost is None:
      example = jax.tree.map(lambda x: x[:used], train)
      self._cost = self.cost(example, settings)
    curve = []
    for number in range(parts):
      chosen = jnp.asarray(rows[number * length :][:length])
      carry = self._part(carry, train, chosen, settings)
      is_lost = not np.isfinite(optax.tree.norm(carry[0]))
      # Of a trial only the end counts.
      if measured or is_lost or number == parts - 1:
        found = evaluate(self.model, carry, validation)
        curve.append(problem.score(*found))
      if is_lost:
        break
    fraction = 0.0
    if variant.factory is not None:
      taken = optax_sam.metrics(carry[2]).get('second_gradients', carry[3])
      fraction = float(taken) / float(carry[3])
    some = jax.tree.map(lambda x: x[: problem.evaluated // 2], train)
    on_train, on_test = (
      evaluate(self.model, carry, part) if measured else _UNKNOWN
      for part in (some, self._test)
    )
    measures = self._measures(carry, train) if measured else {}
    return Outcome(
      seconds=time.perf_counter() - begin,
      gradients=self._cost or variant.gradients(fraction),
      second_gradients=fraction,
      train_loss=on_train[0],
      train_score=problem.score(*on_train),
      validation_loss=found[0],
      validation_score=problem.score(*found),
      test_loss=on_test[0],
      test_score=problem.score(*on_test),
      curve=' '.join(f'{score:.6g}' for score in curve),
      **measures,
    )

  def _operations(self, example: Any, settings: Any) -> float:
    """Returns XLA's operations of a step."""
    carry = self._start(settings, example['inputs'][:1])
    step = jax.jit(lambda *given: self.step(*given)[0])
    program = step.lower(carry, example, settings).compile()
    return program.cost_analysis()['flops']

  def cost(self, example: Any, settings: Any) -> float:
    """Returns the operations of a step relative to the base optimizer's."""
    plain = Trainer(self.problem, Variant('base'), 0.0)
    given = example, settings
    return self._operations(*given) / plain._operations(*given)

  def _measures(self, carry: Any, train: Any) -> dict[str, float]:
    examples = jax.tree.map(lambda x: x[: self.problem.measured], train)
    params, args = carry[0], (carry[1], examples)
    if not np.isfinite(optax.tree.norm(params)):
      return {}
    value_fn = _value_fn(self.problem)
    return {
      'sam_sharpness': sharpness.sam_sharpness(
        value_fn, params, _MEASURED_RHO, args=args
      ),
      'random_sharpness': sharpness.average_adaptive_sharpness(
        value_fn, params, _MEASURED_RHO, draws=5, args=args
      ),
      'rounding_rise': sharpness.rounding_rise(value_fn, params, 4, args=args),
      'top_eigenvalue': sharpness.top_eigenvalue(
        value_fn, params, tolerance=5e-2, max_iterations=100, args=args
      ),
    }


@functools.cache
def _model(problem: Problem) -> Any:
  return problem.model(problems.load(problem.dataset).classes)


@functools.cache
def _value_fn(problem: Problem) -> Any:
  """Returns one function for all runs, so that the measures compile once."""

  def value_fn(params: Any, statistics: Any, batch: Any) -> jax.Array:
    found = per_example_losses(_model(problem), params, statistics, batch)
    return jnp.mean(found)

  return value_fn


def evaluate(model: Any, carry: Any, batch: Any) -> tuple[float, float]:
  """Returns mean loss and accuracy in evaluation mode."""
  count = len(batch['labels'])
  totals = np.zeros(2)
  for first in range(0, count, _EVALUATED_AT_ONCE):
    end = first + _EVALUATED_AT_ONCE
    part = {name: values[first:end] for name, values in batch.items()}
    totals += np.asarray(_evaluate(model, carry[0], carry[1], part))
  loss, accuracy = totals / count
  return float(loss), float(accuracy)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(
  model: Any, params: Any, statistics: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns the sums over the examples of loss and accuracy."""
  variables = {'params': params, **statistics}
  logits = model.apply(variables, batch['inputs'], train=False)
  right = jnp.argmax(logits, axis=-1) == batch['labels']
  right = right.reshape(len(right), -1).astype(jnp.float32)
  return jnp.sum(_cross_entropy(logits, batch)), jnp.sum(jnp.mean(right, 1))


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


def per_example_losses(
  model: Any, params: Any, statistics: Any, batch: Any
) -> jax.Array:
  """Per-example losses in evaluation mode, because of batch norm."""
  variables = {'params': params, **statistics}
  logits = model.apply(variables, batch['inputs'], train=False)
  return _cross_entropy(logits, batch)


def _cross_entropy(logits: jax.Array, batch: Any) -> jax.Array:
  """Returns a loss for each example, in a text the mean over its bytes."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['labels']
  )
  return jnp.mean(losses.reshape(len(losses), -1), axis=1)
