"""Steps on a mesh: that of the trainer, or a handwritten per-device step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_sam.train.config import configs
from optax_sam.train.loop import task, train_step
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import build, registry
from optax_sam.train.optimizers.base_optimizer import base_optimizer

Step = Callable[
  [train_step.TrainingState, Any], tuple[train_step.TrainingState, Any]
]

AXIS = 'data'

# Settings of methods whose default depends on the accuracy of the run.
_SETTINGS = {'ordered_sgd': {'k': 0.5}}


@dataclasses.dataclass(frozen=True)
class Program:
  """A step that can be lowered.

  Attributes:
    step: from state and batch to the next state and metrics.
    state: shapes of the initial state.
    batch: shapes of the global batch.
  """

  step: Step
  state: Any
  batch: Any

  def lower(self, mesh: Mesh) -> Any:
    """Lowers the step with a replicated, donated state and a sharded batch."""
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    jitted = jax.jit(
      self.step,
      in_shardings=(replicated, split),
      out_shardings=replicated,
      donate_argnums=0,
    )
    return jitted.lower(self.state, self.batch)


def parse_row(row: str) -> tuple[str, bool | None]:
  """Returns the method of a row, and its `sync_ascent` in `jax.shard_map`.

  >>> parse_row('shard_map/sam, local ascent'), parse_row('sgd')
  (('sam', False), ('sgd', None))
  """
  manual, _, rest = row.rpartition('/')
  name, _, local = rest.partition(', ')
  return name, not local if manual else None


def of_task(
  problem: task.Task,
  config: configs.TrainConfig,
  mesh: Mesh,
  *,
  sync_ascent: bool | None = None,
) -> Program:
  """Returns the step of the trainer, or one in `jax.shard_map`.

  Args:
    problem: model and data.
    config: settings; its `method` may be the base optimizer.
    mesh: a mesh with one axis.
    sync_ascent: argument of the method, for a step in `jax.shard_map`; None for
      the step of the trainer.
  """
  settings = _settings(config)
  trainer = Trainer(config, problem, config.method, settings)
  state = jax.eval_shape(lambda: trainer.start(0).state)
  if sync_ascent is None:
    name = config.method
    taken = train_step.jitted_step(
      problem,
      trainer.optimizer(seed=0),
      uses_gradient=build.method(name).uses_gradient,
      takes_per_example_losses=build.method(name).takes_per_example_losses,
      ema_decay=config.ema_decay,
      sharding=NamedSharding(mesh, P()),
      rows=NamedSharding(mesh, P('data')),
    )
  else:
    optimizer = _on_axis(config.method, settings, config, sync_ascent)
    taken = _in_shard_map(problem, optimizer, mesh)
  batch = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    dict(problem.inputs.sample()),
  )
  return Program(taken, state, batch)


def _settings(config: configs.TrainConfig) -> dict[str, Any]:
  name = config.method
  if name not in registry.METHODS:
    return {}
  given = build.parse_settings(config.set, [name])[name]
  given = {**_SETTINGS.get(name, {}), **given}
  return build.complete_settings(name, given, config.rho)


def _on_axis(
  name: str,
  settings: dict[str, Any],
  config: configs.TrainConfig,
  sync_ascent: bool,
) -> optax.GradientTransformation:
  """Returns an optimizer that averages over the axis."""
  if name not in registry.METHODS:
    average = optax.stateless(lambda grads, _: jax.lax.pmean(grads, AXIS))
    return optax.chain(average, base_optimizer(config))
  how = {'axis_name': AXIS, 'sync_ascent': sync_ascent}
  return build.optimizer(name, {**settings, **how}, config, seed=0)


def _in_shard_map(
  problem: task.Task, tx: optax.GradientTransformation, mesh: Mesh
) -> Step:
  """Returns a per-device step on local parts of the batch.

  Batch norm normalizes with the local examples; running statistics are
  averaged.
  """
  chain = optax.with_extra_args_support(tx)

  def losses(params: Any, statistics: Any, batch: Any, key: Any) -> Any:
    found, statistics = problem.losses(params, statistics, batch, key)
    return jnp.mean(found), (found, statistics)

  def local(state: train_step.TrainingState, batch: Any) -> Any:
    varying = functools.partial(jax.lax.pcast, axis_name=AXIS, to='varying')
    params, statistics = jax.tree.map(varying, (state.params, state.statistics))
    key = jax.random.fold_in(state.key, state.step)
    (loss, (found, after)), grads = jax.value_and_grad(losses, has_aux=True)(
      params, statistics, batch, key
    )
    updates, opt_state = chain.update(
      grads,
      state.opt_state,
      state.params,
      value_fn=lambda p: losses(p, statistics, batch, key)[0],
      per_example_value_fn=lambda p, b: problem.losses(p, statistics, b, key)[
        0
      ],
      batch=batch,
      losses=found,
    )
    loss, after = jax.lax.pmean((loss, after), AXIS)
    state = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      statistics=after,
      opt_state=opt_state,
    )
    return state, {'loss': loss}

  return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P())
