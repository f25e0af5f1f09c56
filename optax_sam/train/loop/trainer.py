"""The training loop of one run and its evaluations.

A run can be prolonged. From then on its schedules, such as that of the learning
rate, are those of a run with the new number of steps, at the step that was
reached.
"""

import dataclasses
import functools
import math
import re
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam import sharpness
from optax_sam.train.config import configs
from optax_sam.train.data import datasets
from optax_sam.train.data import inputs as inputs_lib
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import cost, evaluation, train_step
from optax_sam.train.loop import external as external_lib
from optax_sam.train.loop.task import Statistics, Task
from optax_sam.train.loop.train_step import TrainingState
from optax_sam.train.loop.training_progress import (
  Progress,
  Row,
  divergence,
  is_due,
)
from optax_sam.train.models import adapters
from optax_sam.train.optimizers import build, registry
from optax_sam.train.optimizers.base_optimizer import schedule

# Enough for a skipping method to run both of its branches.
_WARM_UP_STEPS = 3
_EIGENVALUE_TOLERANCE = 1e-2


class Trainer:
  """Trains one task with one method, with any number of seeds."""

  def __init__(
    self,
    config: configs.Experiment,
    task: Task,
    name: str,
    settings: Mapping[str, Any],
    placement: Placement | None = None,
  ) -> None:
    self.config, self.task, self.name = config, task, name
    self.settings = dict(settings)
    self.placement = placement or Placement()
    self.method = build.method(name)
    # Evaluation and measures use the examples of the task, as all methods do.
    self.inputs: inputs_lib.Inputs = task.inputs
    self.averaging: registry.ValidatedAveraging | None = None
    built = build.external(name, settings)
    if config.adapter_rank is not None:
      noise = None
      if self.method.needs_adapters and built is not None:
        noise, built = functools.partial(built, total_steps=config.steps), None
      model = adapters.adapted(
        task.model,
        config.adapter_rank,
        has_second_pair=self.method.has_second_pair,
        noise=noise,
      )
      self.task = task = dataclasses.replace(task, model=model)
    if isinstance(built, registry.ValidatedAveraging):
      self.averaging = built
      self.inputs = _without_held_out(task.inputs, built.held_out, name)
    self.epoch_steps = inputs_lib.steps_per_epoch(self.inputs)
    self.external = external_lib.build(built, task, self.epoch_steps)
    self.on_host = config.execution == 'host' and self.method.skips
    self.temporary_bytes: int | None = None  # of the compiled step
    self.repetition = 1.0  # of operations in the loops of a step
    # If it is known, rows have `gradients` and `seconds`.
    self.cost: cost.StepCost | None = None
    rate = self.settings.get('learning_rate', config.learning_rate)
    self._schedule = schedule(dataclasses.replace(config, learning_rate=rate))
    self._compiled: Any = None

  def start(self, seed: int) -> Progress:
    """Returns a run before its first step."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params, statistics = _init(self.task, init_key)
    opt_state = self.optimizer(seed).init(params)
    step = jnp.zeros((), jnp.int32)
    state = self.placement.state(
      TrainingState(step, params, statistics, opt_state, run_key)
    )
    if self.external is not None:
      make = self.external.init
      memory = self.placement.made(make, state.params, state.statistics)
      state = state._replace(memory=memory)
    return Progress(state)

  def compile(self) -> Any:
    """Returns the step, compiled once for all seeds, and records its memory."""
    if self._compiled is None:
      self._compiled = self._compile()
    return self._compiled

  def step(
    self, state: TrainingState, batch: datasets.Batch
  ) -> tuple[TrainingState, train_step.Metrics]:
    """Takes one step; if it is one compiled function, it donates the state."""
    return self.compile()(state, self.placement.batch(batch))

  def batch(self, step: int, seed: int) -> datasets.Batch:
    """Returns the batch of a step."""
    ids = self.external is not None and self.external.by_example
    return self.inputs.batch(step, seed, ids=ids)

  def run(
    self,
    progress: Progress,
    seed: int,
    after_step: Callable[[Progress], None] = lambda _: None,
  ) -> None:
    """Trains from the step of `progress`, which is updated, to the last one.

    A run that diverged is evaluated and stopped; then `progress.stopped` says
    why.
    """
    self.compile()
    former, seconds, began = None, 0.0, time.perf_counter()
    while progress.step < self.config.steps and not progress.stopped:
      batch = self.batch(step=progress.step, seed=seed)
      state, metrics = self.step(progress.state, batch)
      # Limits the number of batches on the devices.
      jax.block_until_ready(former)
      former = metrics
      progress.state, progress.step = state, progress.step + 1
      due = self._due(progress.step)
      if due:
        jax.block_until_ready(metrics)
      seconds += time.perf_counter() - began
      if due:
        self._record(progress, metrics, due, seconds, seed)
      after_step(progress)
      began = time.perf_counter()

  def _due(self, step: int) -> set[str]:
    """Returns the kinds of rows that are due after a step."""
    config, averaging, due = self.config, self.averaging, set()
    if step == config.steps or step % config.log_every == 0:
      due.add('log')
    if averaging and step % (self.epoch_steps * averaging.epochs) == 0:
      due.add('validation')
    if is_due(step, config.steps, config.evaluations):
      due.add('evaluation')
    return due

  def _record(
    self,
    progress: Progress,
    metrics: train_step.Metrics,
    due: set[str],
    seconds: float,
    seed: int,
  ) -> None:
    """Adds rows of these kinds, and an evaluation of a run that diverged."""
    spent: Row = {}
    if self.cost is not None:
      taken = int(self._method_metrics(progress.state)['second_gradients'])
      spent['gradients'] = self.cost.until(progress.step, taken)
      spent['seconds'] = seconds
    if 'log' in due:
      progress.log.append(self._log_row(progress, metrics) | spent)
      progress.stopped = divergence(progress.log, self.config.steps)
    if 'validation' in due:
      self._validate(progress, seed)
    if 'evaluation' in due or progress.stopped:
      progress.evaluations.append(self._evaluation_row(progress) | spent)

  def measure_sharpness(self, state: TrainingState) -> Row:
    """Measures sharpness in evaluation mode, on fixed training examples."""
    batch = self.placement.whole(
      self.task.inputs.fixed(self.config.sharpness_examples)
    )
    params, statistics = self.solution(state)
    # The loss of the task compiles once for all methods.
    loss: Any = self.task.evaluation_loss
    if self.placement.mesh is not None:
      loss = self._replicated_loss
    args = (statistics, batch)
    try:
      eigenvalue = sharpness.top_eigenvalue(
        loss, params, args=args, tolerance=_EIGENVALUE_TOLERANCE
      )
    except RuntimeError:  # no convergence: report NaN, not a wrong number
      eigenvalue = math.nan
    rise = sharpness.sam_sharpness(
      loss, params, self.config.sharpness_radius, args=args
    )
    return {'sam_sharpness': rise, 'top_eigenvalue': eigenvalue}

  def solution(self, state: TrainingState) -> tuple[Any, Statistics]:
    """Returns parameters and statistics of the solution of a run so far.

    Statistics of parameters that are not the trained ones are recomputed.
    """
    kept = state.opt_state
    read = registry.solution(kept)
    if self.averaging is not None:
      read, kept = self.averaging.functions.result, state.memory
    if read is None:
      return state.params, state.statistics
    params = read(state.params, kept)
    return params, evaluation.statistics(
      self.task, params, state.statistics, self.placement
    )

  def optimizer(self, seed: int) -> optax.GradientTransformation:
    """Returns method and base; the seed determines random initial state."""
    rows = self.inputs.batch_size
    return build.optimizer(
      self.name,
      self.settings,
      self.config,
      seed=seed,
      epoch_steps=self.epoch_steps,
      batch_like=jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
        dict(self.inputs.sample()),
      ),
      num_data=self.inputs.train_examples,
    )

  def _replicated_loss(
    self, params: Any, statistics: Statistics, batch: datasets.Batch
  ) -> jax.Array:
    # Then gradients are replicated too, so every process can read them.
    params = jax.lax.with_sharding_constraint(params, self.placement.replicated)
    return self.task.evaluation_loss(params, statistics, batch)

  def checksum(self) -> str:
    """Returns a checksum of the operations of a step and of an evaluation."""
    state, batch, _ = self._examples()
    evaluation = jax.make_jaxpr(self.task.evaluate)(
      state.params, state.statistics, batch
    )
    text = f'{self._traced().jaxpr} {evaluation}'
    # Without the addresses of objects.
    return f'{zlib.crc32(re.sub("0x[0-9a-f]+", "", text).encode()):08x}'

  def _examples(self) -> tuple[TrainingState, datasets.Batch, Any]:
    """Returns a state and a batch to trace with, and the sharding."""
    state, sample = self.start(seed=0).state, dict(self.task.inputs.sample())
    if self.external is not None and self.external.by_example:
      sample['ids'] = np.zeros_like(sample['labels'])
    sharding = None
    if self.placement.mesh is not None:
      sharding = self.placement.shardings(state)
    return state, self.placement.batch(sample), sharding

  def _traced(self) -> Any:
    state, batch, sharding = self._examples()
    jitted: Any = train_step.jitted_step(
      self.task,
      self.optimizer(seed=0),
      uses_gradient=self.method.uses_gradient,
      takes_per_example_losses=self.method.takes_per_example_losses,
      external=self.external,
      rows=self.placement.rows,
      donates=True,
      sharding=sharding,
    )
    return jitted.trace(state, batch)

  def _compile(self) -> Any:
    if self.on_host:
      state, batch, sharding = self._examples()
      # Two functions, compiled at their first calls.
      step = train_step.branching_on_host(
        self.task, self.optimizer(seed=0), sharding=sharding
      )
      for _ in range(_WARM_UP_STEPS):
        state, _ = step(state, batch)
      jax.block_until_ready(state)
      return step
    traced = self._traced()
    self.repetition = cost.repetition(traced.jaxpr)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    self.temporary_bytes = getattr(memory, 'temp_size_in_bytes', None)
    return compiled

  def _log_row(self, progress: Progress, metrics: train_step.Metrics) -> Row:
    values: dict[str, Any] = {
      'gradient_norm': math.nan,  # for methods without an unperturbed gradient
      **metrics,
      'learning_rate': self._schedule(progress.step - 1),
      **self._method_metrics(progress.state),
    }
    row = {name: float(value) for name, value in values.items()}
    if not row['second_gradients']:
      row['perturbed_loss'] = math.nan  # unknown before the first ascent step
    return {'step': progress.step, **row}

  def _method_metrics(self, state: TrainingState) -> dict[str, Any]:
    if not self.method.reports:
      return {'ascended': 0, 'second_gradients': 0}
    return optax_sam.metrics(state.opt_state)

  def _validate(self, progress: Progress, seed: int) -> None:
    """Updates an average with the loss on the held-out examples."""
    averaging: Any = self.averaging
    inputs: Any = self.inputs  # in memory, see `_without_held_out`
    held_out, state = inputs.held_out(seed), progress.state
    loss, value = self.evaluate(state.params, state.statistics, [held_out])
    memory = self.placement.made(
      averaging.functions.validate, state.memory, loss
    )
    progress.state = state._replace(memory=memory)
    name = self.task.objective.measured.name
    row = {'validation_loss': loss, f'validation_{name}': value}
    for segment in ('first_segment', 'last_segment'):
      row[segment] = int(getattr(memory, segment))
    progress.validations.append({'step': progress.step, **row})

  def _evaluation_row(self, progress: Progress) -> Row:
    solution, train = self.solution(progress.state), self.task.inputs.train()
    parts: dict[str, Any] = {'test': self.task.inputs.test()}
    if train is not None:
      parts['train'] = [train]
    row: Row = {'step': progress.step}
    for part, batches in parts.items():
      loss, value = self.evaluate(*solution, batches)
      row[f'{part}_loss'] = loss
      row[f'{part}_{self.task.objective.measured.name}'] = value
    return row

  def evaluate(
    self, params: Any, statistics: Statistics, batches: Any
  ) -> tuple[float, float]:
    """Returns mean loss and mean metric, see `evaluation.evaluate`."""
    return evaluation.evaluate(
      self.task, params, statistics, batches, self.placement
    )


def _without_held_out(
  inputs: Any, fraction: float, name: str
) -> inputs_lib.Inputs:
  """Returns the data of a method that does not train on all examples."""
  parts = inputs.with_held_out(fraction)
  if parts.train_examples == inputs.train_examples:
    msg = (
      f'{name}: a validation_share of {fraction} holds out none of '
      f'{inputs.train_examples} training examples; give a larger one'
    )
    raise ValueError(msg)
  which = f' that {name} does not hold out'
  inputs_lib.check_count(
    'batch-size', parts.batch_size, parts.train_examples, which
  )
  return parts


@functools.partial(jax.jit, static_argnums=0)
def _init(task: Task, key: jax.Array) -> tuple[Any, Statistics]:
  return task.init(key)
