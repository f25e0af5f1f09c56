"""The base optimizer and its schedule."""

import jax
import optax

from optax_sam.train.config import configs


def schedule(
  config: configs.Experiment, highest: float | None = None
) -> optax.Schedule:
  """Returns the learning-rate schedule: linear warm-up, then cosine decay.

  Args:
    config: lengths of training and warm-up.
    highest: peak learning rate, None for that of the base optimizer.
  """
  if highest is None:
    highest = configs.learning_rate(config)
  # The peak may be traced, which this function of Optax does not accept.
  shape = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=1.0,
    warmup_steps=round(config.warmup * config.steps),
    decay_steps=config.steps,
  )
  return lambda count: highest * shape(count)


def base_optimizer(
  config: configs.Experiment, steps: int = 1
) -> optax.GradientTransformation:
  """Returns SGD with momentum or AdamW, with weight decay on kernels only.

  With `--clip-norm` it first clips the gradients that it receives from a
  sharpness-aware method. So the method itself uses unclipped gradients.

  Args:
    config: name and settings of the base optimizer.
    steps: number of its steps in one training step.
  """
  decay = configs.weight_decay(config)
  of_training = schedule(config)
  rate = of_training
  if steps > 1:
    rate = lambda count: of_training(count // steps)
  if config.base == 'adamw':
    base = optax.adamw(rate, weight_decay=decay, mask=_is_kernel)
  else:
    base = optax.chain(
      optax.add_decayed_weights(decay, mask=_is_kernel),
      optax.sgd(rate, momentum=0.9),
    )
  if config.clip_norm is None:
    return base
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), base)


def _is_kernel(params: optax.Params) -> optax.Params:
  """Marks parameters with more than one axis: no biases, no batch norm."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
