"""Cost of one training step relative to SGD: `python -m benchmarks.step_cost`.

The steps are those of the trainer, on its small conv network with batch norm
and on images of the size of its digits. All alternate in one process, so that
load on the machine affects all of them; ratios are to jitted SGD in the same
round.
"""

import dataclasses
import datetime as dt
import functools
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
import optax
import tyro

import optax_sam
from optax_sam.train import models
from optax_sam.train.data import datasets, inputs
from optax_sam.train.loop import train_step
from optax_sam.train.loop.task import Task
from optax_sam.train.models import functions
from optax_sam.train.reports import machine

_CLASSES = 10
_IMAGE = (8, 8, 1)
_TOTAL_STEPS = 100_000
_LARGE = 1e9


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table.

  Attributes:
    name: its name in the table.
    method: the transformation before the base optimizer.
    build: builds the step, under `jit` or with a decision on the host.
    share: required fraction of steps with a perturbed gradient, if any.
  """

  name: str
  method: optax.GradientTransformation
  build: Callable[..., train_step.Step] = train_step.jitted_step
  share: float | None = None


def _ae_sam(threshold: float) -> optax.GradientTransformation:
  """Builds AE-SAM with a constant threshold."""
  with warnings.catch_warnings():
    # The row measures steps without ascent.
    warnings.simplefilter('ignore', UserWarning)
    return optax_sam.ae_sam(
      total_steps=_TOTAL_STEPS, lambda_1=threshold, lambda_2=threshold
    )


def _waited_for(*given, **settings) -> train_step.Step:
  """Returns a jitted step that blocks until its result is ready."""
  step = train_step.jitted_step(*given, **settings)

  def waited_for(state, batch):
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return state, metrics

  return waited_for


def rows() -> list[Row]:
  """Returns all rows, SGD first."""
  host = train_step.branching_on_host
  without_gradient = functools.partial(
    train_step.jitted_step, uses_gradient=False
  )
  third = 1 / 3
  steps = {'total_steps': _TOTAL_STEPS}
  return [
    Row('SGD', optax.identity()),
    Row('SGD, waited for on the host', optax.identity(), _waited_for),
    Row('sam', optax_sam.sam()),
    Row('asam', optax_sam.asam()),
    Row('friendly_sam', optax_sam.friendly_sam()),
    Row(
      'k_sam, a third each',
      optax_sam.k_sam(ascent=third, descent=third),
      without_gradient,
    ),
    Row('subset_sam, a quarter', optax_sam.subset_sam(), without_gradient),
    Row('sam, on the host', optax_sam.sam(), host, 1),
    Row('ae_sam skipped, on the host', _ae_sam(_LARGE), host, 0),
    Row('ae_sam full, on the host', _ae_sam(-_LARGE), host, 1),
    Row('ae_sam skipped, jitted', _ae_sam(_LARGE), share=0),
    Row('ae_sam full, jitted', _ae_sam(-_LARGE), share=1),
    Row('ss_sam, on the host', optax_sam.ss_sam(key=0), host),
    Row('look_sam, on the host', optax_sam.look_sam(), host),
    Row('ae_sam, on the host', optax_sam.ae_sam(**steps), host),
    Row('ae_look_sam, on the host', optax_sam.ae_look_sam(**steps), host),
  ]


class Runner:
  """Trains one row, a few steps per turn.

  Attributes:
    row: the row.
    seconds: time per step in every round that counts.
  """

  def __init__(self, row: Row, task: Task, batches: list[datasets.Batch]):
    """Prepares a row; it is compiled in the first round."""
    base = optax.chain(
      optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9)
    )
    self.row = row
    self.seconds: list[float] = []
    self._batches = batches
    optimizer = optax.chain(row.method, base)
    self._step = row.build(task, optimizer)
    params, statistics = task.init(jax.random.key(0))
    self._state = train_step.TrainingState(
      step=jax.numpy.zeros((), int),
      params=params,
      statistics=statistics,
      opt_state=optimizer.init(params),
      key=jax.random.key(1),
    )

  def turn(self) -> float:
    """Takes a few steps, and returns the seconds per step."""
    jax.block_until_ready(self._state)
    start = time.perf_counter()
    for batch in self._batches:
      self._state, _ = self._step(self._state, batch)
    jax.block_until_ready(self._state)
    return (time.perf_counter() - start) / len(self._batches)

  def check(self) -> None:
    """Raises if the fraction of perturbed gradients is wrong."""
    if self.row.share is None:
      return
    found = optax_sam.metrics(self._state.opt_state)
    share = int(found['second_gradients']) / int(found['step_count'])
    if share != self.row.share:
      msg = (
        f'{self.row.name}: {share:.0%} of its steps took a perturbed gradient'
      )
      raise RuntimeError(msg)


def _task(
  batch_size: int, num_batches: int, convolve: Callable[..., jax.Array]
) -> tuple[Task, list[datasets.Batch]]:
  random = np.random.default_rng(0)
  count = batch_size * num_batches
  examples = {
    'inputs': random.normal(size=(count, *_IMAGE)).astype(np.float32),
    'labels': random.integers(_CLASSES, size=count).astype(np.int32),
  }
  dataset = datasets.Dataset(examples, examples, _CLASSES)
  batches = [
    {
      name: jax.device_put(values[i * batch_size : (i + 1) * batch_size])
      for name, values in examples.items()
    }
    for i in range(num_batches)
  ]
  model = models.build('cnn', _CLASSES, _IMAGE).clone(convolve=convolve)
  examples = inputs.InMemory(dataset, batch_size)
  return Task(functions.from_model(model), examples), batches


def main(
  rounds: int = 40,
  steps: int = 12,
  batch_size: int = 100,
  only: str = '',
  lax_convolutions: bool = False,
) -> None:
  """Prints a Markdown table of the cost of a step relative to SGD.

  Args:
    rounds: number of rounds that count, after two warm-up rounds.
    steps: number of consecutive steps of a row in a round.
    batch_size: number of examples in a batch.
    only: measure only rows with these words in their names, and SGD.
    lax_convolutions: use `jax.lax.conv_general_dilated`.
  """
  convolve = (
    jax.lax.conv_general_dilated
    if lax_convolutions
    else optax_sam.conv_general_dilated
  )
  task, batches = _task(batch_size, steps, convolve)
  reference_row, *others = rows()
  chosen = [reference_row, *(row for row in others if only in row.name)]
  runners = [Runner(row, task, batches) for row in chosen]
  for round_number in range(rounds + 2):
    for runner in runners:
      seconds = runner.turn()
      if round_number >= 2:
        runner.seconds.append(seconds)
  for runner in runners:
    runner.check()

  reference = np.asarray(runners[0].seconds)
  print(f'{dt.datetime.now(dt.UTC):%Y-%m-%d}, batch {batch_size},')
  print(', '.join((*machine.describe().values(), f'jax {jax.__version__}')))
  print()
  print('| step | relative to SGD | quartiles | ms |')
  print('|---|---|---|---|')
  for runner in runners:
    values = np.asarray(runner.seconds)
    low, middle, high = np.quantile(values / reference, (0.25, 0.5, 0.75))
    print(
      f'| {runner.row.name} | {middle:.2f} | {low:.2f} to {high:.2f} '
      f'| {1e3 * np.median(values):.2f} |'
    )


if __name__ == '__main__':
  tyro.cli(main)
