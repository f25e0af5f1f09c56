"""Time per step, measured with all methods taking turns in one process."""

import time
from collections.abc import Callable, Mapping, Sequence

import jax

from optax_sam.train.loop import Trainer
from optax_sam.train.results import Timing
from optax_sam.train.step import TrainingState

# A turn is long enough for a periodic method to show its period.
STEPS_A_TURN = 10
# States from so many points of a run, since a method that skips may do so
# more often early than late.
POINTS = 4


def points(steps: int) -> tuple[int, ...]:
  """Returns the steps of a run at which a state is kept for the timing."""
  return tuple(
    max(1, round(steps * (point + 0.5) / POINTS)) for point in range(POINTS)
  )


def measure(
  trainers: Mapping[str, Trainer],
  states: Mapping[str, Sequence[TrainingState]],
  *,
  base: str,
  rounds: int,
  after_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
  """Times the steps of several methods.

  In each round every method runs a few steps from each of its states, and the
  methods take turns at every state, so that whatever else the machine does
  hits them alike. Methods that skip are timed as they run, skips included.

  Args:
    trainers: the compiled trainers, by method.
    states: for each method states from several points of its own training.
    base: the method that the others are relative to.
    rounds: number of rounds that count; one more before them warms up.
    after_round: called after every round that counts.

  Returns:
    One timing for each method, with one entry a round.
  """
  seconds: dict[str, list[float]] = {name: [] for name in trainers}
  for round_number in range(rounds + 1):
    spent = dict.fromkeys(trainers, 0.0)
    for point in range(len(states[base])):
      for name, trainer in trainers.items():
        spent[name] += _turn(trainer, states[name][point])
    if round_number == 0:
      continue
    for name, total in spent.items():
      seconds[name].append(total / (STEPS_A_TURN * len(states[name])))
    after_round()
  return [
    Timing(
      method=name,
      milliseconds=[1e3 * value for value in values],
      relative=[
        value / reference
        for value, reference in zip(values, seconds[base], strict=True)
      ],
      temporary_bytes=trainers[name].temporary_bytes,
    )
    for name, values in seconds.items()
  ]


def _turn(trainer: Trainer, state: TrainingState) -> float:
  """Returns the seconds that a few steps take from a state on."""
  first = int(state.step)
  batches = [
    trainer.batch(step=step, seed=0)
    for step in range(first, first + STEPS_A_TURN)
  ]
  jax.block_until_ready(state)
  start = time.perf_counter()
  for batch in batches:
    state, _ = trainer.step(state, batch)
  jax.block_until_ready(state)
  return time.perf_counter() - start
