"""Time per step: methods alternate in one process."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from optax_sam.train.loop import train_step
from optax_sam.train.loop.trainer import Progress, Trainer
from optax_sam.train.reports.results import Timing

# Long enough to cover the period of a periodic method.
STEPS_A_TURN = 10
# Fractions of a run at which timing starts: a method may skip more often early
# than late, and a setting may change.
POINTS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)


def keep_starts(trainer: Trainer, kept: list[Progress], now: Progress) -> None:
  """Adds a copy of the state at a point of timing, or of divergence."""
  steps = trainer.config.steps
  if now.stopped or now.step in {max(1, round(x * steps)) for x in POINTS}:
    # A copy, because the next step donates the buffers of the state.
    state = train_step.copy(now.state)
    kept.append(dataclasses.replace(now, state=state))


def measure(
  trainers: Mapping[str, Trainer],
  starts: Mapping[str, Sequence[Progress]],
  *,
  base: str,
  rounds: int,
) -> list[Timing]:
  """Times the steps of several methods.

  In each round every method runs a few steps from each of its starts. The
  methods alternate at every start, so that other load on the machine affects
  all of them. Skipped steps are included.
  """
  turns = max(map(len, starts.values()))
  seconds = np.zeros((1 + rounds, len(trainers)))
  for spent in seconds:
    for turn in range(turns):
      for column, (name, trainer) in enumerate(trainers.items()):
        own = starts[name]
        spent[column] += _turn(trainer, own[turn % len(own)])
  # The first round is a warm-up.
  seconds = seconds[1:].T / (STEPS_A_TURN * turns)
  of_base = seconds[list(trainers).index(base)]
  return [
    Timing(
      method=name,
      milliseconds=(1e3 * own).tolist(),
      relative=(own / of_base).tolist(),
      temporary_bytes=trainers[name].temporary_bytes,
    )
    for name, own in zip(trainers, seconds, strict=True)
  ]


def _turn(trainer: Trainer, start: Progress) -> float:
  """Returns the seconds that a few steps from a start take."""
  first = start.step
  batches = [trainer.batch(first + i, seed=0) for i in range(STEPS_A_TURN)]
  step = trainer.compile()
  state = train_step.copy(start.state)  # the step donates its input
  jax.block_until_ready(state)
  began = time.perf_counter()
  for batch in batches:
    state, _ = step(state, batch)
  jax.block_until_ready(state)
  return time.perf_counter() - began
