"""Methods with the rest of Optax, and invalid arguments."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import optax_sam
from tests.contracts import comparisons, table, training

A = jnp.diag(jnp.array([4.0, 2.0, 1.0]))
W = jnp.array([3.0, -1.0, 2.0])
X = jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, -1.0]])


def loss(w):
  return jnp.dot(w, jnp.dot(A, w)) / 2


def losses(w, x):
  return jnp.square(jnp.dot(x, w) - 1)


G = jax.grad(loss)(W)


def sam_by_hand(scale=1.0, rho=0.05):
  """Returns the gradient of `scale * loss` at W + rho * G / norm(G)."""
  a, w = np.array([4.0, 2.0, 1.0]), np.array([3.0, -1.0, 2.0])
  g = a * w
  return scale * a * (w + rho * g / np.sqrt(np.sum(g**2)))


def one(tx, *, grads=G, params=W, **given):
  return tx.update(grads, tx.init(params), params, **given)


# Injected hyperparameters.


@table.every_method()
def test_methods_are_injected_without_listing_static_arguments(name):
  """Static defaults and arguments remain Python values."""
  row = table.ROWS[name]
  given = row.settings()
  if row.place == 'wraps':
    given['base'] = table.base()
  tx = optax.inject_hyperparams(row.function)(**given)
  params, batch = training.params(), training.batch()
  grads, more = training.gradient(params, batch), training.functions(batch)
  update = lambda state: tx.update(grads, state, params, **more)
  state = tx.init(params)
  _, after = jax.eval_shape(update, state)
  assert comparisons.types(after) == comparisons.types(state)
  assert not {*row.method.static} & state.hyperparams.keys()
  if row.radius:
    assert float(state.hyperparams[row.radius]) == np.float32(0.05)
  # Only required arguments, from the examples of the catalog.
  example = {**row.method.example}
  if row.place == 'wraps':
    example['base'] = optax.sgd(0.1)
  optax.inject_hyperparams(row.function)(**example).init(training.params())


def test_all_ways_to_inject_are_equivalent():
  mask = lambda _: {'a': True, 'b': False}
  params = {'a': W, 'b': W}
  for build in (
    optax.inject_hyperparams(optax_sam.sam),
    optax.inject_hyperparams(optax_sam.sam, static_args=('p', 'mask')),
    optax.inject_hyperparams(functools.partial(optax_sam.sam, p=2)),
  ):
    for rho in (0.05, optax.constant_schedule(0.05)):
      tx = build(rho=rho, mask=mask)
      value_fn = lambda p: loss(p['a']) + loss(p['b'])
      grads = {'a': G, 'b': G}
      found, state = one(tx, grads=grads, params=params, value_fn=value_fn)
      np.testing.assert_allclose(found['a'], sam_by_hand(), rtol=1e-6)
      np.testing.assert_allclose(found['b'], G, rtol=1e-6)
      assert state.hyperparams.keys() == {'rho'}
  two = optax.inject_hyperparams(optax_sam.sam)(rho=0.05, ascent_steps=2)
  expected = one(optax_sam.sam(0.05, ascent_steps=2), value_fn=loss)[0]
  comparisons.assert_close(one(two, value_fn=loss)[0], expected)
  with pytest.raises(TypeError, match=r"k_sam: missing a required .*'ascent'"):
    optax.inject_hyperparams(optax_sam.k_sam)(rho=0.1)


@table.every_method(lambda row: row.place in ('chain', 'after'))
def test_the_step_count_is_that_of_the_schedule(name):
  tx = table.ROWS[name].whole(base=lambda: optax.sgd(lambda t: 0.1 / (t + 1)))
  state = tx.init(training.params())
  assert int(optax.tree.get(state, 'count')) == 0


# Extra arguments by name.


def scaled(w, k):
  return k * loss(w)


class Scaled:
  def __call__(self, w, *, k):
    return k * loss(w)


@pytest.mark.parametrize(
  'value_fn',
  [
    scaled,
    jax.jit(scaled),
    Scaled(),
    lambda w, k=1.0: k * loss(w),
    lambda w, **more: more['k'] * loss(w),
    functools.partial(scaled, k=1.0),
    jax.tree_util.Partial(scaled),
    lambda value, *grad, k, **more: k * loss(value) + 0 * len((*grad, *more)),
    lambda k_is_not_mine, *, k: k * loss(k_is_not_mine),
  ],
)
def test_functions_get_the_arguments_that_they_name(value_fn):
  k = jnp.float32(2)
  more = {'k': k, 'unheard_of': 'word', 'value': 2.0, 'grad': 2 * G}
  tx = optax_sam.sam(0.05)
  found, _ = one(tx, grads=2 * G, value_fn=value_fn, **more)
  np.testing.assert_allclose(found, sam_by_hand(2.0), rtol=1e-6)
  grad_fn = lambda w, k: k * jnp.dot(A, w)
  found, _ = one(tx, grads=2 * G, grad_fn=grad_fn, **more)
  np.testing.assert_allclose(found, sam_by_hand(2.0), rtol=1e-6)


def test_per_example_functions_get_the_arguments_that_they_name():
  scaled_losses = lambda w, x, k: k * losses(w, x)
  mean = lambda w: 2 * jnp.mean(losses(w, X))
  g = jax.grad(mean)(W)
  found, _ = one(
    optax_sam.sam(0.05),
    grads=g,
    per_example_value_fn=scaled_losses,
    batch=X,
    k=2.0,
  )
  expected = jax.grad(mean)(W + 0.05 * g / jnp.linalg.norm(g))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Also the batch, as a line search passes it.
  found, _ = one(
    optax_sam.sam(0.05),
    grads=g,
    value_fn=lambda w, batch: 2 * jnp.mean(losses(w, batch)),
    batch=X,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def k_sam_by_hand():
  """Ascends on the largest loss and descends on the two largest at W."""
  w, x = np.array(W, np.float64), np.array(X, np.float64)
  order = np.argsort(-np.square(x @ w - 1))
  gradient = lambda w, x: np.mean(2 * (x @ w - 1)[:, None] * x, axis=0)
  g = gradient(w, x[order[:1]])
  return gradient(w + 0.05 * g / np.sqrt(np.sum(g**2)), x[order[:2]])


_BASES = {
  'lbfgs': optax.lbfgs,
  'zoom': lambda: optax.chain(
    optax.sgd(1.0), optax.scale_by_zoom_linesearch(20)
  ),
  'backtracking': lambda: optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)
  ),
}


@pytest.mark.parametrize('base', _BASES)
@pytest.mark.parametrize('value_fn', ['of parameters', 'of the batch'])
def test_a_per_example_method_before_a_line_search_gets_its_arguments(
  base, value_fn
):
  base, mean = _BASES[base](), lambda w: jnp.mean(losses(w, X))
  by_batch = lambda w, batch: jnp.mean(losses(w, batch))
  value, grad = jax.value_and_grad(mean)(W)
  known = {'value': value, 'grad': grad}
  known['value_fn'] = mean if value_fn == 'of parameters' else by_batch
  direction = jnp.asarray(k_sam_by_hand(), jnp.float32)
  alone = {**known, 'value_fn': mean}
  expected, _ = base.update(direction, base.init(W), W, **alone)

  method = optax_sam.k_sam(0.05, ascent=1, descent=2)
  tx = optax.chain(method, optax_sam.hide_arguments(base))
  more = {'per_example_value_fn': losses, 'batch': X, 'ascend': True}
  for run in (lambda f: f, jax.jit):
    step = run(lambda w: one(tx, grads=grad, params=w, **known, **more)[0])
    np.testing.assert_allclose(step(W), expected, rtol=1e-5, atol=1e-6)
  assert float(mean(W + step(W))) < float(value)
  with pytest.raises(TypeError, match='not consumed by `value_fn`'):
    one(optax.chain(method, base), grads=grad, **known, **more)


def test_a_method_before_a_line_search_gets_its_arguments():
  tx = optax.chain(optax_sam.sam(0.05), optax.sgd(0.1))
  search = optax.chain(tx, optax.scale_by_backtracking_linesearch(20))
  found, _ = one(
    search,
    grads=2 * G,
    value_fn=scaled,
    k=jnp.float32(2),
    value=scaled(W, jnp.float32(2)),
    grad=2 * G,
  )
  assert float(loss(W + found)) < float(loss(W))
  np.testing.assert_allclose(
    found / found[0], sam_by_hand() / sam_by_hand()[0], rtol=1e-5
  )


# Wrappers that do not forward extra arguments.


def _lookahead(tx):
  return optax.lookahead(tx, sync_period=2, slow_step_size=0.5)


@pytest.mark.parametrize(
  ('wrap', 'params'),
  [
    (_lookahead, optax.LookaheadParams.init_synced),
    (optax.contrib.split_real_and_imaginary, lambda w: w),
    (lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(), lambda w: w),
  ],
)
def test_wrappers_that_drop_the_function_raise(wrap, params):
  tx = optax.chain(wrap(optax.chain(optax_sam.sam(), optax.sgd(0.1))))
  dropped = r'a wrapper has dropped it(.|\n)*optax.lookahead(.|\n)*before them'
  with pytest.raises(ValueError, match=dropped):
    one(tx, params=params(W), value_fn=loss)


def test_the_train_state_of_flax_raises():
  state = train_state.TrainState.create(
    apply_fn=nn.Dense(1).apply,
    params={'w': W},
    tx=optax.chain(optax_sam.sam(), optax.sgd(0.1)),
  )
  with pytest.raises(ValueError, match=r'optax_sam\.flax\.TrainState'):
    state.apply_gradients(grads={'w': G}, value_fn=lambda p: loss(p['w']))


def test_per_example_gradients_raise():
  """`optax.contrib.differentially_private_aggregate` needs such gradients."""
  with pytest.raises(ValueError, match=r'got \(4, 3\) for \(3,\).*the mean'):
    one(optax_sam.sam(), grads=jnp.stack([G] * 4), value_fn=loss)


@pytest.mark.parametrize(
  ('ascent', 'method'),
  [
    (
      optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
      optax_sam.sam(0.1),
    ),
    (optax.sgd(0.1), optax_sam.unnormalized_sam(0.1)),
  ],
)
def test_the_replacement_of_the_sam_of_optax_is_equal(ascent, method):
  base = optax.sgd(optax.linear_schedule(0.1, 0.0, 5), momentum=0.9)
  theirs = optax.contrib.sam(base, ascent, opaque_mode=True)
  ours, (v, w) = optax.chain(method, base), (W, W)
  their_state, our_state = theirs.init(v), ours.init(w)
  grad_fn = lambda p, _: jax.grad(loss)(p)
  for _ in range(5):
    g = jax.grad(loss)(v)
    updates, their_state = theirs.update(g, their_state, v, grad_fn=grad_fn)
    v = optax.apply_updates(v, updates)
    g = jax.grad(loss)(w)
    updates, our_state = ours.update(g, our_state, w, value_fn=loss)
    w = optax.apply_updates(w, updates)
  np.testing.assert_allclose(w, v, rtol=1e-5)


# Invalid arguments.


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda: optax_sam.k_sam(), r"k_sam: .*'ascent'.*ascent=..., descent=\.\."),
    (lambda: optax_sam.sparse_sam_fisher(), 'refresh_every=...'),
    (
      lambda: optax_sam.sam(optax.sgd(0.1), optax.sgd(0.1)),
      'optax.contrib.sam',
    ),
    (
      lambda: optax_sam.sam(optax.sgd(0.1), optax.sgd(0.1), sync_period=2),
      'optax.contrib.sam',
    ),
    (lambda: optax_sam.sam(0.1, adaptive=True), "'adaptive'.* p, ascent_steps"),
    (lambda: optax_sam.sam(optax.sgd(0.1)), 'before the base optimizer'),
    (
      lambda: optax_sam.sampa(optax.sgd(0.1), batch_like=1.0),
      'batch_like must hold arrays',
    ),
  ],
)
def test_invalid_calls_raise(build, words):
  with pytest.raises((TypeError, ValueError), match=words):
    build()


@pytest.mark.parametrize('value', [3, 'every', optax_sam.policies.always])
@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('perturbation', 'a GradientTransformation, got .*=optax_sam.perturbat'),
    ('policy', 'a Policy, got .*policy=optax_sam.policies.every'),
    ('descent', 'a Descent, got .*descent=optax_sam.descents.mix'),
    ('selection', 'a Selection, got .*selection=optax_sam.selections.micro'),
  ],
)
def test_components_of_another_kind_raise(name, words, value):
  epsilon = optax_sam.perturbations.scale_to_radius(0.05)
  given = {'perturbation': epsilon, name: value}
  with pytest.raises(ValueError, match=f'{name} must be {words}'):
    optax_sam.sharpness_aware(**given)
  with pytest.raises(ValueError, match='policy must be a Policy'):
    optax_sam.policies.after(5, value)


_PARAMS, _BATCH = training.params(), training.batch()
_GRADS = training.gradient(_PARAMS, _BATCH)
_FUNCTIONS = training.functions(_BATCH)
_NORM = {'scale': jnp.ones(3)}


@pytest.mark.parametrize(
  ('grads', 'words'),
  [
    ({**_GRADS, 'norm': _NORM}, r"\(3,\) for \(2,\) at 'norm/scale'"),
    (jax.tree.map(lambda x: x.tolist(), _GRADS), "float at 'dense/bias/0'"),
    ({'dense': _GRADS['dense']}, "nothing at 'norm/scale'"),
    ({**_GRADS, 'more': jnp.ones(1)}, "an array at 'more'"),
    (jax.tree.map(lambda x: x + 0j, _GRADS), "complex64.* at 'dense/bias'"),
    (jax.tree.map(lambda x: x.astype(int), _GRADS), "int32.* at 'dense/bias'"),
    ({**_GRADS, 'norm': {'scale': 'one'}}, "a str at 'norm/scale'"),
  ],
)
@table.every_method(lambda row: row.place != 'after')
def test_invalid_gradients_raise(name, grads, words):
  tx = table.ROWS[name].alone()
  with pytest.raises(ValueError, match=f'updates must .*{words}'):
    tx.update(grads, tx.init(_PARAMS), _PARAMS, **_FUNCTIONS)


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'value_fn': 3.0}, 'value_fn must be a function of the para.* got 3.0'),
    ({'value_fn': lambda _, x: x}, r"\(_, x\): missing .*'x'. Pass"),
    (
      {'grad_fn': lambda p, i: (i, p)},
      r"'i'(.|\n)*of optax.contrib.sam",
    ),
    (
      {'per_example_value_fn': lambda p: p},
      r'called as per.*\(params, batch\)',
    ),
    ({'losses': jnp.ones(7)}, r'losses must .* shape \(8,\), got shape \(7,\)'),
    ({'losses': jnp.ones((8, 1))}, r'losses must .* shape \(8,\), got'),
  ],
)
@table.every_method(lambda row: 'mask' in row.parameters)
def test_invalid_functions_raise(name, given, words):
  tx = table.ROWS[name].alone()
  given = {**_FUNCTIONS, **given}
  with pytest.raises(ValueError, match=words):
    tx.update(_GRADS, tx.init(_PARAMS), _PARAMS, **given)


@pytest.mark.parametrize(
  ('value', 'words'),
  [(3, 'int'), (jnp.int32(3), 'int32'), ('a', 'str'), (1 + 1j, 'complex')],
)
def test_values_that_are_not_losses_raise(value, words):
  for name in ('sam', 'lookbehind', 'frob_sam'):
    with pytest.raises(ValueError, match=f'value_fn must return .*{words}'):
      one(table.ROWS[name].alone(), value_fn=lambda _: value)


@table.every_method(lambda row: row.method.needs == 'examples')
def test_an_empty_batch_raises(name):
  tx = table.ROWS[name].alone()
  given = {**_FUNCTIONS, 'batch': jax.tree.map(lambda x: x[:0], _BATCH)}
  with pytest.raises(ValueError, match='batch must hold an example'):
    tx.update(_GRADS, tx.init(_PARAMS), _PARAMS, **given)


@table.every_method()
def test_the_state_of_another_optimizer_raises(name):
  tx, state = table.ROWS[name].alone(), optax.sgd(0.1, 0.9).init(_PARAMS)
  with pytest.raises(ValueError, match=r'state must be .*, got a tuple: pass'):
    tx.update(_GRADS, state, _PARAMS, **_FUNCTIONS)


@table.every_method(lambda row: 'mask' in row.parameters)
def test_the_state_of_another_method_raises(name):
  def update(tx, state):
    return tx.update(_GRADS, state, _PARAMS, **_FUNCTIONS)

  others = {}
  for row in ('sam', 'ae_sam', 'look_sam', 'vasso', 'esam'):
    state = table.ROWS[row].alone().init(_PARAMS)
    others.setdefault(jax.tree.structure(state), state)
  own = jax.tree.structure(table.ROWS[name].alone().init(_PARAMS))
  others.pop(own, None)
  assert others
  for state in others.values():
    words = r'state must be (that of the same method .*|a .*, got a .*): pass'
    with pytest.raises(ValueError, match=words):
      update(table.ROWS[name].alone(), state)


def test_the_state_of_other_parameters_raises():
  tx = optax_sam.look_sam()
  with pytest.raises(ValueError, match=r'same parameters, got .* another desc'):
    tx.update(_GRADS, tx.init(_GRADS['norm']), _PARAMS, **_FUNCTIONS)


@pytest.mark.parametrize(
  ('radius', 'words'),
  [
    (float('inf'), 'rho must be at least 0 and below inf, got inf'),
    (lambda _: None, 'rho of a step must be a number, got None'),
    (lambda _: -0.1, 'rho of a step must be at least 0 .* got -0.1'),
    (lambda _: np.ones(1), r'rho of a step .* got an array of shape \(1,\)'),
    (optax_sam.sam, 'rho of a step .* got a gradient transformation'),
  ],
)
@pytest.mark.parametrize('name', ['sam', 'eigen_sam', 'lookbehind', 'tsam'])
def test_invalid_radii_raise(name, radius, words):
  with pytest.raises(ValueError, match=words):
    one(table.ROWS[name].alone(rho=radius), value_fn=loss)


def test_arrays_of_numpy_in_float64_are_accepted():
  """Without float64 in JAX they become float32, with no warning."""
  w = np.array([3.0, -1.0, 2.0])
  tx = optax.chain(optax_sam.look_sam(), optax.sgd(0.1))
  step = jax.jit(optax_sam.make_step(lambda w, _: loss(w), tx))
  found, _, _ = step(w, tx.init(w), None)
  expected, _, _ = step(W, tx.init(W), None)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', ['ae_sam', 'look_sam', 'ss_sam'])
def test_a_missing_function_in_a_skipped_step_raises(name):
  """It also raises outside of `jax.jit`, where Python branches."""
  settings = {'ss_sam': {'probability': 1e-9}, 'look_sam': {'period': 10**6}}
  tx = table.ROWS[name].alone(**settings.get(name, {}))
  _, state = one(tx, value_fn=loss)
  for _ in range(3):
    with pytest.raises(ValueError, match='needs a function to differentiate'):
      tx.update(G, state, W)


def test_each_member_of_an_ensemble_may_have_its_own_key():
  """With one seed all members make the same decisions."""
  members, keys = jnp.stack([W] * 8), jax.random.split(jax.random.key(0), 8)
  tx = optax_sam.ss_sam(probability=0.5, key=0)
  own = lambda w, key: optax_sam.ss_sam(probability=0.5, key=key).init(w)

  def decisions(states):
    step = lambda w, s: tx.update(jax.grad(loss)(w), s, w, value_fn=loss)[1]
    found = jax.vmap(step)(members, states)
    return np.asarray(optax_sam.metrics(found)['ascended'])

  assert len(set(decisions(jax.vmap(tx.init)(members)).tolist())) == 1
  assert len(set(decisions(jax.vmap(own)(members, keys)).tolist())) == 2
