"""AE-SAM and AE-LookSAM."""

import numpy as np

import optax_sam
from tests.oracles.cases import cases
from tests.oracles.look_sam import reuse
from tests.oracles.step import of_length


def moments_and_decision(x, past, factor, decay=0.9):
  average = decay * past[0] + (1 - decay) * x
  variance = decay * past[1] + (1 - decay) * (x - average) ** 2
  return (average, variance), x >= average + factor * np.sqrt(variance)


def is_sharp(step, total_steps, decay, low, high):
  """Returns the decision, based on the gradient of all devices."""
  progress = step.t / total_steps
  step.memory['moments'], ascends = moments_and_decision(
    np.sum(step.gradients().mean(axis=0) ** 2),
    step.memory.get('moments', (0.0, 0.0)),
    (1 - progress) * high + progress * low,
    decay,
  )
  return ascends


def ae_sam(
  step, rho=0.05, *, total_steps, decay=0.9, lambda_1=-1.0, lambda_2=1.0
):
  if step.skips(is_sharp(step, total_steps, decay, lambda_1, lambda_2)):
    return step.gradients()
  return step.gradients(of_length(rho, step.ascent()))


def ae_look_sam(
  step,
  rho=0.05,
  *,
  total_steps,
  decay=0.9,
  lambda_1=0.0,
  lambda_2=2.0,
  alpha=0.1,
):
  sharp = is_sharp(step, total_steps, decay, lambda_1, lambda_2)
  return reuse(step, of_length(rho, step.ascent()), sharp, alpha=alpha)


CASES = [
  *cases(optax_sam.ae_sam, ae_sam, {'rho': 0.1, 'total_steps': 20}),
  *cases(optax_sam.ae_look_sam, ae_look_sam, {'rho': 0.1, 'total_steps': 20}),
]
