"""Typical steps inside `jax.pmap` and `jax.shard_map`.

A step without `axis_name` gives replicas that diverge, or updates that are too
large by the number of devices. Both raise an error before the first step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_sam
from tests.contracts import table

RHO = 0.05
W = jnp.array([3.0, -1.0, 2.0])
XS = jnp.asarray(np.sin(np.arange(96.0)).reshape(32, 3), jnp.float32)
LEFT_OUT = (
  r"axis_name='data'.* pass local gradients.*train independently, write"
)
SPLIT = r'split over such an axis are not supported.*jax.jit with sharded'
INSIDE = [row for row in table.METHODS.values() if row.place != 'after']


def losses(w, x):
  return jnp.square(x @ w - 1)


def loss(w, x):
  return jnp.mean(losses(w, x))


def mesh(**axes):
  return jax.make_mesh(
    tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
  )


def cast(w, axes='data'):
  return jax.lax.pcast(w, axes, to='varying')


def step(tx, w, x, g, f=loss, **given):
  """Returns the update of the first step."""
  given = given or {'value_fn': lambda w: f(w, x)}
  return tx.update(g, tx.init(w), w, **given)[0]


def by_hand(w, x):
  """Returns SAM's gradient on one device, in NumPy."""
  w, x = np.float64(w), np.float64(x)
  gradient = lambda w: 2 * x.T @ (x @ w - 1) / len(x)
  g = gradient(w)
  return gradient(w + RHO * g / np.linalg.norm(g))


def mean_by_hand(w, x, devices):
  parts = np.split(np.asarray(x), devices)
  return np.mean([by_hand(w, part) for part in parts], axis=0)


ALL, DATA = P(), P('data')


def over(one, *, axes=None, vma, specs=(ALL, DATA), out=DATA, **given):
  """Runs one step on eight devices; maps (w, x) to an update."""
  devices = mesh(**(axes or {'data': 8}))
  program = jax.shard_map(
    one, mesh=devices, in_specs=specs, out_specs=out, check_vma=vma, **given
  )
  return jax.jit(program)(W, XS)


def with_pmean(tx, w, x, *, vma=False, **given):
  """Averages the gradient, and passes the local loss, a common mistake."""
  local = cast(w) if vma else w
  g = jax.lax.pmean(jax.grad(loss)(local, x), 'data')
  return step(tx, w, x, g, **given)


@pytest.mark.parametrize('vma', [False, True])
def test_an_averaged_gradient_with_a_local_loss_raises(vma):
  one = functools.partial(with_pmean, optax_sam.sam(RHO), vma=vma)
  with pytest.raises(ValueError, match=LEFT_OUT):
    over(one, vma=vma)
  with pytest.raises(ValueError, match=LEFT_OUT):
    over(
      lambda w, x: step(optax_sam.sam(), w, x, jax.grad(loss)(w, x)), vma=vma
    )


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'axis_name': 'data'}, LEFT_OUT),
    ({'axis_name': 'batch'}, r"axis_name='batch', and pass local"),
    ({}, r"jax.pmap\(step, axis_name='data'\) and axis_name='data'"),
  ],
)
def test_pmap_without_axis_name_raises(given, words):
  one = lambda w, x: step(optax_sam.sam(), w, x, jax.grad(loss)(w, x))
  with pytest.raises(ValueError, match=words):
    jax.pmap(one, in_axes=(None, 0), **given)(W, XS.reshape(8, 4, 3))


@pytest.mark.parametrize('vma', [False, True])
@pytest.mark.parametrize('row', INSIDE, ids=lambda row: row.name)
def test_all_methods_raise_for_any_decision(row, vma):
  """Skipped steps raise too, and gradients that pass the other check."""
  batch = {'x': jnp.ones((8, 3)), 'y': jnp.ones((8, 2)), 'weight': jnp.ones(8)}
  if 'batch_like' in row.parameters:
    tx = row.alone(batch_like=jax.tree.map(lambda x: x[:1], batch))
  else:
    tx = row.alone()
  f = lambda w, batch: batch['weight'] * losses(w, batch['x'])
  given = {'ascend': False} if row.place == 'chain' else {}

  def one(w, batch):
    local = cast(w) if vma else w
    g = jax.grad(lambda w: jnp.mean(f(w, batch)))(local)
    return step(tx, w, batch, g, per_example_value_fn=f, batch=batch, **given)

  program = jax.shard_map(
    one,
    mesh=mesh(data=8),
    in_specs=(P(), P('data')),
    out_specs=P('data'),
    check_vma=vma,
  )
  with pytest.raises(ValueError, match=LEFT_OUT):
    jax.eval_shape(program, W, batch)


def test_the_fix_in_the_message_gives_the_correct_update():
  tx = optax_sam.sam(RHO, axis_name='data')
  wanted = mean_by_hand(W, XS, 8)
  one = lambda w, x: step(tx, w, x, jax.grad(loss)(cast(w), x))
  np.testing.assert_allclose(over(one, vma=True, out=P()), wanted, rtol=1e-5)
  one = lambda w, x: step(tx, w, x, jax.grad(loss)(w, x))
  found = over(one, vma=False, out=P())
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  found = jax.pmap(one, 'data', in_axes=(None, 0))(W, XS.reshape(8, 4, 3))
  np.testing.assert_allclose(found, [wanted] * 8, rtol=1e-5)


@pytest.mark.parametrize('way', ['pmap', 'unchecked', 'checked', 'cast'])
def test_independent_devices_equal_separate_runs(way):
  """Eight runs in one compiled function equal eight runs on one device."""
  axis_name = None if way == 'cast' else ()
  tx = optax_sam.look_sam(RHO, period=2, axis_name=axis_name)
  checked = way in ('checked', 'cast')

  def one(w, x):
    local = cast(w) if checked else w
    return step(tx, local if way == 'cast' else w, x, jax.grad(loss)(local, x))

  if way == 'pmap':
    found = jax.pmap(one, in_axes=(None, 0))(W, XS.reshape(8, 4, 3))
  else:
    found = over(lambda w, x: one(w, x)[None], vma=checked)
  wanted = [by_hand(W, part) for part in np.split(XS, 8)]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_independent_devices_with_summed_gradients_raise():
  tx = optax_sam.sam(axis_name=())
  one = lambda w, x: step(tx, w, x, jax.grad(loss)(w, x))
  with pytest.raises(ValueError, match=r'updates must be local.*pcast'):
    over(one, vma=True)


def test_an_unknown_axis_raises():
  tx = optax_sam.sam(axis_name='data')
  one = lambda w, x: step(tx, w, x, jax.grad(loss)(w, x))
  with pytest.raises(ValueError, match=r'leave it out under jax.jit'):
    jax.jit(one)(W, XS)
  with pytest.raises(ValueError, match=r"got axis_name='data': give both one"):
    jax.pmap(one, 'batch', in_axes=(None, 0))(W, XS.reshape(8, 4, 3))


def test_a_loop_of_steps_without_axis_name_raises():
  def one(w, x):
    more = lambda w, _: (w - with_pmean(optax_sam.sam(), w, x), None)
    return jax.lax.scan(more, w, jnp.arange(2))[0]

  with pytest.raises(ValueError, match=LEFT_OUT):
    over(one, vma=False)


TWO = {'data': 4, 'model': 2}


@pytest.mark.parametrize('vma', [False, True])
def test_a_missing_second_axis_raises(vma):
  """The batch is split over both axes, and only one is named."""
  axes = ('data', 'model')
  tx = optax_sam.sam(axis_name='data')
  one = lambda w, x: step(
    tx, w, x, jax.grad(loss)(cast(w, axes) if vma else w, x)
  )
  with pytest.raises(ValueError, match=r"axis_name=\('data', 'model'\), and"):
    over(one, axes=TWO, vma=vma, specs=(P(), P(axes)), out=P(axes))


@pytest.mark.parametrize('axis_names', [{'data', 'model'}, {'data'}])
def test_an_axis_that_splits_no_array_needs_no_name(axis_names):
  tx = optax_sam.sam(RHO, axis_name='data')
  one = lambda w, x: step(tx, w, x, jax.grad(loss)(cast(w), x))
  found = over(one, axes=TWO, vma=True, out=P(), axis_names=axis_names)
  np.testing.assert_allclose(found, mean_by_hand(W, XS, 4), rtol=1e-5)


def test_one_device_on_an_axis_needs_no_name():
  one = functools.partial(with_pmean, optax_sam.sam(RHO))
  program = jax.shard_map(
    one,
    mesh=mesh(data=1),
    in_specs=(P(), P('data')),
    out_specs=P(),
    check_vma=False,
  )
  found = jax.jit(program)(W, XS)
  np.testing.assert_allclose(found, by_hand(W, XS), rtol=1e-5)


def test_a_loss_of_the_whole_batch_needs_no_name():
  """The loss is averaged before differentiation, so the gradient is global."""
  f = lambda w, x: jax.lax.pmean(loss(w, x), 'data')
  one = lambda w, x: step(optax_sam.sam(RHO), w, x, jax.grad(f)(w, x), f)
  found = over(one, vma=True, out=P())
  np.testing.assert_allclose(found, by_hand(W, XS), rtol=1e-5)


def test_an_averaged_loss_with_local_parameters_raises():
  """The local gradient is too small by the number of devices."""
  tx = optax_sam.sam(RHO, axis_name='data')
  f = lambda w, x: jax.lax.pmean(loss(w, x), 'data')
  one = lambda w, x: step(tx, w, x, jax.grad(f)(cast(w), x), f)
  with pytest.raises(ValueError, match=r'loss of this device.*pmean out'):
    over(one, vma=True, out=P())


@pytest.mark.parametrize('has_loss', [False, True])
def test_a_gradient_function_of_local_examples_raises(has_loss):
  one = lambda w, x: step(
    optax_sam.sam(RHO),
    w,
    x,
    jax.lax.pmean(jax.grad(loss)(w, x), 'data'),
    grad_fn=lambda w: jax.lax.pmean(
      (jax.value_and_grad if has_loss else jax.grad)(loss)(w, x), 'data'
    ),
  )
  with pytest.raises(ValueError, match=LEFT_OUT):
    over(one, vma=True, out=P())


@pytest.mark.parametrize('axis_name', [None, 'data'])
@pytest.mark.parametrize('vma', [False, True])
def test_manually_sharded_parameters_raise(vma, axis_name):
  """Four local norms, 4.4 to 398, would replace the norm of 430."""
  tx = optax_sam.sam(axis_name=axis_name)

  def fsdp(x):
    gathered = lambda x: jax.lax.all_gather(x, 'data', tiled=True)
    f = lambda x: jnp.sum(gathered(x) ** 4) / 4
    return tx.update(jax.grad(f)(x), tx.init(x), x, value_fn=f)[0]

  program = jax.shard_map(
    fsdp,
    mesh=mesh(data=4),
    in_specs=P('data'),
    out_specs=P('data'),
    check_vma=vma,
  )
  if not vma and axis_name:
    return  # Not detectable here, as documented.
  with pytest.raises(ValueError, match=SPLIT):
    jax.jit(program)(jnp.arange(1.0, 17.0) / 4)


def test_sync_ascent_without_an_axis_raises():
  for axis_name in (None, ()):
    with pytest.raises(ValueError, match=r'sync_ascent=True needs axis_name'):
      optax_sam.sam(axis_name=axis_name, sync_ascent=True)
