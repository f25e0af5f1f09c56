"""Steps on a mesh: that of the trainer, or a handwritten per-device step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optax_sam.train.config import configs
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import task, train_step
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import build, registry
from optax_sam.train.optimizers.base_optimizer import base_optimizer

AXIS = 'data'
FSDP_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Row:
  """A step of the tables.

  Attributes:
    method: a method, or `sgd` for the base optimizer alone.
    kind: empty for the trainer's step with replicated parameters, `fsdp` for
      the same with sharded ones, `shard_map` for a handwritten step.
    donates: whether the step donates the buffers of the state.
    sync_ascent: argument of the method in a handwritten step.
  """

  method: str
  kind: str = ''
  donates: bool = True
  sync_ascent: bool = True

  @classmethod
  def parse(cls, text: str) -> 'Row':
    """Parses the name of a row.

    >>> Row.parse('fsdp/sam, not donated')
    Row(method='sam', kind='fsdp', donates=False, sync_ascent=True)
    """
    kind, _, rest = text.rpartition('/')
    method, *notes = rest.split(', ')
    return cls(
      method, kind, 'not donated' not in notes, 'local ascent' not in notes
    )

  def mesh(self, devices: Sequence[Any]) -> Mesh:
    """Returns the mesh of the step, of all devices."""
    if self.kind != 'fsdp':
      return Mesh(np.asarray(devices), (AXIS,))
    shaped = np.asarray(devices).reshape(-1, FSDP_SIZE)
    return Mesh(shaped, (AXIS, 'fsdp'))


def lower(
  problem: task.Task,
  config: configs.TrainConfig,
  row: Row,
  devices: Sequence[Any],
) -> Any:
  """Lowers the step of a row for devices, which may be absent.

  Args:
    problem: model and data.
    config: settings; its `method` may be the base optimizer.
    row: kind of the step.
    devices: all devices of the mesh.
  """
  name, settings = config.method, _settings(config)
  placement = Placement(row.mesh(devices))
  trainer = Trainer(config, problem, name, settings)
  state = jax.eval_shape(lambda: trainer.start(0).state)
  shardings = placement.shardings(state)
  step: Any
  if row.kind == 'shard_map':
    optimizer = _on_axis(name, settings, config, row.sync_ascent)
    step = jax.jit(
      _in_shard_map(problem, optimizer, placement.mesh),
      donate_argnums=0 if row.donates else None,
    )
  else:
    step = train_step.jitted_step(
      problem,
      trainer.optimizer(seed=0),
      uses_gradient=build.method(name).uses_gradient,
      takes_per_example_losses=build.method(name).takes_per_example_losses,
      sharding=shardings,
      rows=placement.rows,
      donates=row.donates,
    )
  shape = lambda leaf, sharding: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding
  )
  batch = {
    name: shape(values, placement.rows)
    for name, values in problem.inputs.sample().items()
  }
  return step.lower(jax.tree.map(shape, state, shardings), batch)


def _settings(config: configs.TrainConfig) -> dict[str, Any]:
  name = config.method
  if name not in registry.METHODS:
    return {}
  given = build.parse_settings(config.set, [name])[name]
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
  problem: task.Task, tx: optax.GradientTransformation, mesh: Mesh | None
) -> Callable[..., Any]:
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
    each = lambda p, b: problem.losses(p, statistics, b, key)[0]
    updates, opt_state = chain.update(
      grads,
      state.opt_state,
      state.params,
      value_fn=lambda p: losses(p, statistics, batch, key)[0],
      per_example_value_fn=each,
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
