"""Operations and collectives of one step of every method, as compiled.

    python -m benchmarks.operations
    python -m benchmarks.operations --output before.csv
    python -m benchmarks.operations --against before.csv

A step of a small dense network is compiled, not run: on one device under `jit`,
and on eight under `shard_map` with local and synced ascent. The table has XLA's
operations, the all-reduces with their numbers of entries, and the temporary
memory. `--against` prints only differences to a table.
"""

import argparse
import csv
import inspect
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import loop_operations
from optax_sam import catalog

DEVICES = 8
EXAMPLES = 64
FIELDS = ('operations', 'all_reduces', 'numbers', 'temporary_bytes')
_PLACES = ('chain', 'wraps', 'replaces')
# Override arguments of the catalog that compile to large functions.
_EXAMPLES = {
  'refresh_every': 2,
  'power_steps': 2,
  'num_samples': 2,
  'micro_batches': 2,
  'micro_batch_size': 4,
  'quantile': 0.5,
}
_SHAPES = {'inputs': (32,), 'targets': ()}


def _batch(examples: int) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    name: jax.ShapeDtypeStruct((examples, *shape), jnp.float32)
    for name, shape in _SHAPES.items()
  }


def _params() -> dict[str, jax.Array]:
  return {
    'hidden': jnp.zeros((32, 48)),
    'bias': jnp.zeros(48),
    'out': jnp.zeros(48),
  }


def _losses(params: Any, batch: Any) -> jax.Array:
  hidden = jnp.tanh(batch['inputs'] @ params['hidden'] + params['bias'])
  return jnp.square(hidden @ params['out'] - batch['targets'])


def _optimizer(row: catalog.Method, examples: int, **given: Any) -> Any:
  accepted = inspect.signature(row.function).parameters
  arguments = {
    **{name: x for name, x in _EXAMPLES.items() if name in accepted},
    **{name: x for name, x in row.example.items() if name not in _EXAMPLES},
    **given,
  }
  if 'batch_like' in accepted:
    arguments['batch_like'] = _batch(examples)
  base = optax.sgd(0.1, momentum=0.9)
  if row.place == 'wraps':
    return row.function(base, **arguments)
  method = row.function(**arguments)
  return method if row.place == 'replaces' else optax.chain(method, base)


def _step(
  tx: Any, axis: str | None, params: Any, state: Any, batch: Any
) -> Any:
  value_fn = lambda p: jnp.mean(_losses(p, batch))
  local = params if axis is None else jax.lax.pcast(params, axis, to='varying')
  grads = jax.grad(value_fn)(local)
  given = {'per_example_value_fn': _losses, 'batch': batch}
  updates, state = tx.update(grads, state, params, value_fn=value_fn, **given)
  return optax.apply_updates(params, updates), state


def _measured(program: Any, *given: Any) -> dict[str, int]:
  compiled = program.lower(*given).compile()
  reduces = re.findall(r'= (.*?) all-reduce(?:-start)?\(', compiled.as_text())
  shapes = re.findall(r'\w+\[([\d,]*)\]', ' '.join(reduces))
  sizes = (math.prod(map(int, filter(None, x.split(',')))) for x in shapes)
  memory = compiled.memory_analysis().temp_size_in_bytes
  operations = int(loop_operations.count(compiled))
  return dict(
    zip(FIELDS, (operations, len(reduces), sum(sizes), memory), strict=True)
  )


def _of_row(row: catalog.Method) -> Iterator[tuple[str, dict[str, int]]]:
  params = _params()
  tx = optax.with_extra_args_support(_optimizer(row, EXAMPLES))
  step = lambda *given: _step(tx, None, *given)
  state = jax.eval_shape(tx.init, params)
  program = jax.jit(step, donate_argnums=(0, 1))
  yield 'jit', _measured(program, params, state, _batch(EXAMPLES))
  can_sync = 'sync_ascent' in inspect.signature(row.function).parameters
  for sync in (False, True)[: 1 + can_sync]:
    given = {'sync_ascent': sync} if can_sync else {}
    local = _optimizer(row, EXAMPLES // DEVICES, axis_name='data', **given)
    state = jax.eval_shape(local.init, params)
    specs = jax.tree.map(lambda _: P(), state)
    if 'batch_like' in inspect.signature(row.function).parameters:
      state = state._replace(batch=_batch(EXAMPLES))
      specs = specs._replace(batch=P('data'))
    program = jax.shard_map(
      lambda *given, tx=local: _step(tx, 'data', *given),
      mesh=Mesh(np.array(jax.devices()), ('data',)),
      in_specs=(P(), specs, P('data')),
      out_specs=(P(), specs),
    )
    measured = _measured(jax.jit(program), params, state, _batch(EXAMPLES))
    yield 'synced' if sync else 'local', measured


def main() -> None:
  """Prints the table, or the differences to another one."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--output', type=pathlib.Path)
  parser.add_argument('--against', type=pathlib.Path)
  options = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', DEVICES)
  known = {}
  if options.against:
    with options.against.open(encoding='utf-8') as file:
      known = {(x['method'], x['program']): x for x in csv.DictReader(file)}
  rows = []
  for name, row in catalog.METHODS.items():
    if row.place not in _PLACES:
      continue
    for program, found in _of_row(row):
      rows.append({'method': name, 'program': program, **found})
      before = known.get((name, program))
      same = before and all(int(before[x]) == found[x] for x in FIELDS)
      if not same:
        print(f'{name:24}{program:8}', *(f'{found[x]:>10}' for x in FIELDS))
      if before and not same:
        print(' ' * 32, *(f'{before[x]:>10}' for x in FIELDS), '(before)')
  if options.output:
    with options.output.open('w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, ['method', 'program', *FIELDS])
      writer.writeheader()
      writer.writerows(rows)


if __name__ == '__main__':
  main()
