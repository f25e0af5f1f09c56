"""Frozen parameters: labels, masks, missing gradients and cost.

The engine separates frozen leaves from the others, so most of these tests run
over one row of every path through it. The rules of the methods only get the
others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

_LABELS = {'base': 'frozen', 'lora': 'adapters'}
_MASK = {'base': False, 'lora': True}


def _lora():
  return {'base': 100 * jnp.ones(50), 'lora': 0.1 * jnp.ones(5)}


def _loss(p):
  return jnp.sum(p['base'] ** 2) * 1e-2 + jnp.sum(p['lora'] ** 4)


def _adapters_alone():
  """Returns the gradient of the adapters, shifted by 0.05 along (1, 1, ...)."""
  return np.full(5, 4 * (0.1 + 0.05 / 5**0.5) ** 3)


@pytest.mark.parametrize(
  ('labels', 'frozen'),
  [
    (_LABELS, 'frozen'),
    (_LABELS, ('frozen', 'unheard of')),
    (lambda p: jax.tree.map(lambda x: int(x.size > 5), p), 1),
    (lambda _: _LABELS, {'frozen'}),
  ],
)
def test_only_adapters_are_perturbed_with_the_full_radius(labels, frozen):
  params, grads = _lora(), jax.grad(_loss)(_lora())
  groups = {'frozen': optax.set_to_zero(), 1: optax.set_to_zero()}
  groups |= {'adapters': optax.sgd(1.0), 0: optax.sgd(1.0)}
  tx = optax.chain(
    optax_sam.sam(0.05, mask=optax_sam.trainable(labels, frozen=frozen)),
    optax.partition(groups, labels),
  )
  updates, _ = tx.update(grads, tx.init(params), params, value_fn=_loss)
  np.testing.assert_allclose(updates['lora'], -_adapters_alone(), rtol=1e-5)
  np.testing.assert_array_equal(updates['base'], np.zeros(50))


@pytest.mark.parametrize('frozen', ['base', ('frozen', 'adapters')])
def test_labels_that_freeze_nothing_or_all_raise(frozen):
  mask = optax_sam.trainable(_LABELS, frozen=frozen)
  with pytest.raises(ValueError, match=r"frozen must name some .*'adapters'"):
    optax_sam.sam(mask=mask).init(_lora())


@pytest.mark.parametrize('mask', [None, _MASK])
@pytest.mark.parametrize('function', ['value_fn', 'grad_fn', 'with None'])
def test_a_missing_gradient_freezes_a_float_leaf(mask, function):
  params, grads = _lora(), {**jax.grad(_loss)(_lora()), 'base': None}
  given = {
    'value_fn': {'value_fn': _loss},
    'grad_fn': {'grad_fn': jax.value_and_grad(_loss)},
    'with None': {'grad_fn': lambda p: {**jax.grad(_loss)(p), 'base': None}},
  }[function]
  tx = optax.chain(optax_sam.sam(0.05, mask=mask), optax.sgd(1.0))
  updates, state = tx.update(grads, tx.init(params), params, **given)
  np.testing.assert_allclose(updates['lora'], -_adapters_alone(), rtol=1e-5)
  assert updates['base'] is None
  norm = optax_sam.metrics(state)['ascent_norm']
  np.testing.assert_allclose(norm, 0.004 * 5**0.5, rtol=1e-5)


def test_a_missing_gradient_of_an_integer_leaf_is_accepted():
  params = {'w': jnp.ones(2), 'steps': jnp.int32(3), 'more': [jnp.int32(1)] * 2}
  tx, none = optax_sam.sam(2**0.5), {'steps': None, 'more': None}
  grad_fn = lambda p: {'w': p['w'], **none}
  for mask in (None, {'w': True, 'steps': False, 'more': True}):
    tx = optax_sam.sam(2**0.5, mask=mask)
    updates, _ = tx.update(
      grad_fn(params), tx.init(params), params, grad_fn=grad_fn
    )
    np.testing.assert_allclose(updates['w'], 2 * np.ones(2), rtol=1e-6)
    assert updates['steps'] is None
    assert updates['more'] is None


def test_a_gradient_function_that_omits_a_leaf_raises():
  params, grads = _lora(), jax.grad(_loss)(_lora())
  tx = optax_sam.sam()
  for missing in ({'base': grads['base']}, {**grads, 'lora': None}):
    with pytest.raises(ValueError, match=r"grad_fn must return .*'lora'"):
      tx.update(grads, tx.init(params), params, grad_fn=lambda _, g=missing: g)
  with pytest.raises(ValueError, match='must hold gradients, got None at'):
    tx.update(None, tx.init(params), params, grad_fn=lambda _: grads)


def _base():
  return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))


def _trained(name, absent, alone, mask):
  """Returns updates and metrics of some steps with a frozen part.

  The frozen part is a leaf without a gradient, or, if `alone`, not a parameter.
  """
  row, whole = table.ROWS[name], training.params()
  fixed = {absent: whole[absent]}
  live = {key: x for key, x in whole.items() if key != absent}
  params = live if alone else whole
  if mask is not None and alone:
    mask = {key: x for key, x in mask.items() if key != absent}
  masked = {} if mask is None else {'mask': mask}
  tx = row.alone(0.5, base=_base, **masked)
  losses = lambda p, b: training.losses({**p, **fixed} if alone else p, b)

  @jax.jit
  def update(state, batch):
    given = training.functions(batch, losses)
    grads = jax.grad(lambda p: training.loss({**p, **fixed}, batch))(live)
    grads = grads if alone else {**grads, absent: None}
    updates, state = tx.update(grads, state, params, **given)
    if not alone:
      assert updates[absent] is None
    return {key: updates[key] for key in live}, state

  state, found = tx.init(params), []
  structure = jax.tree.structure(state)
  for step in range(3):
    updates, state = update(state, training.batch(step))
    found.append(updates)
  assert jax.tree.structure(state) == structure
  has_info = table.ROWS[name].method.radius is not None
  return found, optax_sam.metrics(state) if has_info else None


# These draw masks over all parameters in `init`.
_DRAWN_AT_INIT = ('sparse_sam_dynamic',)


@table.every_path(lambda row: row.place != 'after')
def test_a_leaf_without_a_gradient_has_no_effect_on_the_step(name):
  masks = [None]
  if 'mask' in table.ROWS[name].parameters:
    masks.append({'dense': {'bias': True, 'kernel': False}, 'norm': True})
  for absent, mask in zip(('norm', 'dense'), masks, strict=False):
    if name in _DRAWN_AT_INIT:
      _trained(name, absent, alone=False, mask=mask)
      continue
    expected = _trained(name, absent, alone=True, mask=mask)
    found = _trained(name, absent, alone=False, mask=mask)
    comparisons.assert_close(found, expected)


@table.every_path(lambda row: 'mask' in row.parameters)
def test_frozen_labels_work_with_every_kind_of_method(name):
  """Trained parameters move as if the frozen ones were constants."""
  row, params, batch = table.ROWS[name], training.params(), training.batch()
  labels = {'dense': 'frozen', 'norm': 'trained'}
  mask = optax_sam.trainable(labels, frozen='frozen')
  sgd = lambda: optax.sgd(0.1)
  parts = {'frozen': optax.set_to_zero(), 'trained': sgd()}
  parted = lambda: optax.partition(parts, labels)
  alone = lambda p, b: training.losses({**params, **p}, b)

  def update(tx, params, losses):
    given = training.functions(batch, losses)
    grads = jax.grad(given['value_fn'])(params)
    step = jax.jit(lambda s: tx.update(grads, s, params, **given))
    _, state = step(tx.init(params))
    return step(state)[0]

  found = update(row.whole(base=parted, mask=mask), params, training.losses)
  live = {'norm': params['norm']}
  expected = update(row.whole(base=sgd), live, alone)
  if name not in _DRAWN_AT_INIT:
    comparisons.assert_close(found['norm'], expected['norm'])
  comparisons.assert_equal(
    found['dense'], jax.tree.map(jnp.zeros_like, params['dense'])
  )


def test_averages_do_not_change_frozen_leaves():
  params = {'a': jnp.ones(2), 'b': jnp.full(2, 3.0)}
  tx = optax_sam.swa(1)
  updates = {'a': jnp.ones(2), 'b': None}
  found, state = tx.update(updates, tx.init(params), params)
  assert found is updates
  average = optax_sam.averaged_params(params, state)
  comparisons.assert_equal(average, {'a': 2 * jnp.ones(2), 'b': params['b']})
  tx = optax_sam.anti_pgd(0.1, key=0)
  with pytest.raises(ValueError, match='anti_pgd moves all parameters'):
    tx.update(updates, tx.init(params), params)


@table.every_method()
def test_methods_inside_masked_and_partition_raise(name):
  row, params = table.ROWS[name], training.params()
  method, mask = row.alone(), {'dense': True, 'norm': False}
  batch = training.batch()
  given = training.functions(batch)
  for tx in (
    optax.masked(method, mask),
    optax.partition({True: method, False: optax.set_to_zero()}, mask),
  ):
    with pytest.raises(
      ValueError, match=r"'norm'(.|\n)*before optax.partition, with"
    ):
      tx.init(params)
  if name in ('swa', 'anti_pgd'):
    return
  nodes = {**params, 'norm': optax.MaskedNode()}
  with pytest.raises(
    ValueError, match=r"'norm'(.|\n)*before optax.partition, with"
  ):
    method.update(nodes, method.init(params), nodes, **given)


def test_an_average_of_masked_parameters_raises():
  nodes = {'a': optax.MaskedNode(), 'b': jnp.ones(2)}
  with pytest.raises(ValueError, match=r"'a'(.|\n)*before optax.partition"):
    optax_sam.swad().init(nodes)


@table.every_kind(lambda row: 'mask' in row.parameters)
def test_masked_complex_parameters_are_updated(name):
  """The complex parameters do not affect the real ones."""
  row, batch = table.ROWS[name], training.batch()
  mask = lambda p: {key: key != 'complex' for key in p}
  tx = row.alone(0.5, mask=mask, base=lambda: optax.sgd(0.1))
  params = training.params()
  entry = jnp.array([1 + 2j], jnp.complex64)
  losses = lambda p, b: training.losses(
    {key: p[key] for key in ('dense', 'norm')}, b
  )

  @jax.jit
  def update(params):
    grads = training.gradient({**training.params()}, batch)
    grads = {
      **grads,
      **{key: x for key, x in params.items() if key == 'complex'},
    }
    return tx.update(
      grads, tx.init(params), params, **training.functions(batch, losses)
    )

  found, _ = update({**params, 'complex': entry})
  moved = found.pop('complex')
  assert moved.dtype == jnp.complex64
  comparisons.assert_close(found, update(params)[0])


@table.every_path(table.in_chain)
def test_frozen_leaves_cost_nothing(name):
  """Counted in operations; nearly all parameters are frozen."""
  row, rows, batch = table.ROWS[name], jnp.ones((64, 256)), jnp.ones((4, 64))
  params, method = {'base': rows, 'lora': jnp.ones((256, 1))}, row.alone()
  labels = {'base': 'frozen', 'lora': 'adapters'}
  parts = {'adapters': optax.sgd(0.1), 'frozen': optax.set_to_zero()}
  losses = lambda p, b: (jnp.tanh(b @ p['base']) @ p['lora'])[:, 0]

  def count(tx, like, grad_of):
    def step(params, state):
      rows = params['base']
      whole = lambda p, b: losses({'base': rows, **p}, b)
      given = training.functions(batch, whole)
      grads = {'base': None, **jax.grad(given['value_fn'])(grad_of(params))}
      grads = {key: grads[key] for key in like}
      updates, state = tx.update(grads, state, like_of(params), **given)
      return updates['lora'], state

    like_of = lambda params: {key: params[key] for key in like}
    compiled = jax.jit(step).lower(params, tx.init(like)).compile()
    return compiled.cost_analysis()['flops']

  lora = lambda p: {'lora': p['lora']}
  plain = optax.chain(method, optax.sgd(0.1))
  alone = count(plain, lora(params), lora)
  # One pass over the frozen leaves would be 16,384 operations.
  assert count(plain, params, lora) < alone + 1000
  if 'mask' in row.parameters:
    mask = optax_sam.trainable(labels, frozen='frozen')
    masked = row.alone(mask=mask)
    tx = optax.chain(masked, optax.partition(parts, labels))
    assert count(tx, params, lambda p: p) < alone + 1000
    sizes = [x.size for x in jax.tree.leaves(masked.init(params))]
    assert max(sizes, default=0) <= 256
