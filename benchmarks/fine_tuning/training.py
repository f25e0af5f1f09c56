"""Pre-training, fine-tuning and evaluation, each as one compiled function."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_sam
from benchmarks.fine_tuning import texts
from benchmarks.fine_tuning.methods import METHODS, Method
from benchmarks.fine_tuning.model import Kernel, Second, Transformer, losses


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of model, texts and runs."""

  width: int = 64
  blocks: int = 2
  length: int = 64
  rank: int = 4
  batch: int = 16
  pretraining_steps: int = 1500
  steps: int = 300
  evaluated: int = 256
  new_bytes: int = 100_000


QUICK = Sizes(
  width=16, blocks=1, length=16, batch=4, pretraining_steps=8, steps=6,
  evaluated=16,
)  # fmt: skip


class Outcome(NamedTuple):
  """The result of one run of fine-tuning, losses in nats per byte.

  Attributes:
    old_before: loss on the first text before fine-tuning.
    old: loss on the first text after it.
    new: loss on the test part of the new text.
    validation: loss on its validation part.
    operations: of one step, by XLA.
    state: numbers in the state of the optimizer.
    temporary: temporary bytes of the compiled run.
  """

  old_before: float
  old: float
  new: float
  validation: float
  operations: float
  state: int
  temporary: int


def _model(sizes: Sizes, seed: int) -> Transformer:
  return Transformer(
    length=sizes.length,
    width=sizes.width,
    blocks=sizes.blocks,
    rngs=nnx.Rngs(seed),
  )


def _loss(graphdef: Any, state: Any, codes: jax.Array) -> jax.Array:
  return losses(nnx.merge(graphdef, state)(codes[:, :-1]), codes[:, 1:])


def _batches(codes: np.ndarray, steps: int, sizes: Sizes, seed: int) -> Any:
  size = sizes.length + 1
  found = texts.batches(codes, steps, sizes.batch, size, seed)
  return jnp.asarray(np.stack(list(found)))


def pretrained(
  old: texts.Parts, sizes: Sizes, seed: int, cache: pathlib.Path
) -> Transformer:
  """Returns a model trained on the first text, from a file if there is one."""
  model = _model(sizes, seed)
  graphdef, state = nnx.split(model)
  leaves, structure = jax.tree.flatten(state)
  settings = f'{sizes} {hashlib.sha256(old.training.tobytes()).hexdigest()}'
  name = hashlib.sha256(f'{settings} {seed}'.encode()).hexdigest()[:16]
  path = cache / f'pretrained_{name}.npz'
  if path.exists():
    with np.load(path) as file:
      loaded = [jnp.asarray(file[f'arr_{i}']) for i in range(len(leaves))]
    return nnx.merge(graphdef, structure.unflatten(loaded))
  steps = sizes.pretraining_steps
  rate = optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 20, steps)
  tx = optax.adamw(rate)
  take = optax_sam.make_step(functools.partial(_loss, graphdef), tx)

  @jax.jit
  def train(state: Any, batches: jax.Array) -> Any:
    step = lambda carry, codes: (take(*carry, codes)[:2], None)
    return jax.lax.scan(step, (state, tx.init(state)), batches)[0][0]

  state = train(state, _batches(old.training, steps, sizes, seed))
  cache.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial.npz')
  np.savez(partial, *jax.tree.leaves(state))
  partial.rename(path)
  return nnx.merge(graphdef, state)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(graphdef: Any, state: Any, codes: jax.Array) -> jax.Array:
  parts = codes.reshape(-1, 16, codes.shape[-1])
  return jnp.mean(jax.lax.map(lambda part: _loss(graphdef, state, part), parts))


def evaluate(model: Transformer, codes: np.ndarray, sizes: Sizes) -> float:
  """Returns the loss on windows that are the same for all models."""
  rng = np.random.default_rng(0)
  windows = texts.windows(codes, sizes.evaluated, sizes.length + 1, rng)
  graphdef, state = nnx.split(model)
  return float(_evaluate(graphdef, state, jnp.asarray(windows)))


def fine_tune(
  model: Transformer,
  method: Method,
  new: texts.Parts,
  sizes: Sizes,
  seed: int,
  *,
  learning_rate: float,
  radius: float,
) -> tuple[Transformer, dict[str, Any]]:
  """Returns a copy of the model with trained adapters, and the cost."""
  model = nnx.clone(model)
  rngs = nnx.Rngs(1000 + seed)
  model.adapt(sizes.rank, rngs, has_second='second' in method.parts)
  graphdef, second, adapters, kernels, rest = nnx.split(
    model, Second, nnx.LoRAParam, Kernel, ...
  )
  states = {'second': second, 'lora': adapters, 'kernels': kernels}
  params = {part: states.pop(part) for part in method.parts}
  batches = _batches(new.training, sizes.steps, sizes, 2000 + seed)
  numbers = jnp.float32(learning_rate), jnp.float32(radius), jnp.int32(seed)
  given = states, rest, batches, *numbers
  tx = _optimizer(method, sizes, learning_rate, radius)
  state = jax.eval_shape(tx.init, params)
  compiled = _compiled(graphdef, method.name, sizes, params, given)
  trained = compiled(params, *given)
  if 'second' in method.parts:
    trained = {**trained, 'second': jax.tree.map(jnp.zeros_like, second)}
  states = [{**states, **trained}[x] for x in ('second', 'lora', 'kernels')]
  cost = {
    'operations': compiled.cost_analysis()['flops'],
    'state': sum(math.prod(x.shape) for x in jax.tree.leaves(state)),
    'temporary': compiled.memory_analysis().temp_size_in_bytes,
  }
  return nnx.merge(graphdef, *states, rest), cost


def _optimizer(method: Method, sizes: Sizes, rate: Any, radius: Any) -> Any:
  schedule = optax.cosine_decay_schedule(rate, sizes.steps)
  return method.optimizer(optax.adamw(schedule), radius)


_COMPILED: dict[Any, Any] = {}


def _compiled(
  graphdef: Any, name: str, sizes: Sizes, params: Any, given: tuple[Any, ...]
) -> Any:
  """Compiles the run of a method once, for all radii and seeds."""
  if (name, sizes) not in _COMPILED:
    run = functools.partial(_run, graphdef, METHODS[name], sizes)
    _COMPILED[name, sizes] = jax.jit(run).lower(params, *given).compile()
  return _COMPILED[name, sizes]


def _run(
  graphdef: Any,
  method: Method,
  sizes: Sizes,
  params: Any,
  states: Any,
  rest: Any,
  batches: jax.Array,
  learning_rate: jax.Array,
  radius: jax.Array,
  seed: jax.Array,
) -> Any:
  """Trains the adapters."""
  tx = optax.with_extra_args_support(
    _optimizer(method, sizes, learning_rate, radius)
  )

  def outputs(params: Any, batch: Any) -> jax.Array:
    parts = {**states, **params}
    in_order = [parts[part] for part in ('second', 'lora', 'kernels')]
    noise = None
    if method.has_noise:
      key, total = jax.random.key(seed), sizes.steps
      noise = {'key': key, 'step': batch['step'], 'total_steps': total}
      noise['sigma'] = radius
    model = nnx.merge(graphdef, *in_order, rest)
    return model(batch['codes'][:, :-1], noise)

  def loss(logits: jax.Array, batch: Any) -> jax.Array:
    return losses(logits, batch['codes'][:, 1:])

  def step(carry: Any, batch: Any) -> Any:
    params, opt_state = carry
    value_fn = lambda p: loss(outputs(p, batch), batch)
    extra = {'value_fn': value_fn}
    if method.is_functional:
      given = outputs, loss, params, batch
      extra = {'grad_fn': optax_sam.functional_grad_fn(*given)}
    grads = jax.grad(value_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params, **extra)
    return (optax.apply_updates(params, updates), opt_state), None

  batch = {'codes': batches, 'step': jnp.arange(sizes.steps)}
  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batch)
  return params
