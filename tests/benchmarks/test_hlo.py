import jax
import jax.numpy as jnp

from benchmarks.pod import hlo

# In the format of the TPU compiler, with a conditional and with asynchronous
# operations, which are pairs of start and done.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, buffer_donor={ {0}: (0, {}) }

FileNames
1 "all-reduce(somewhere).py"

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %c.1 = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%p, %p)
}

%taken (t: (f32[4])) -> (f32[4]) {
  %t = (f32[4]{0:T(128)}) parameter(0)
  %g = bf16[8,4]{1,0:T(8,128)(2,1)} fusion(%t), kind=kOutput, calls=%fused
  %d = f32[2,2]{1,0} dot(%g, %g), metadata={op_name="calls=%never"}
  ROOT %r = (f32[4]{0}, bf16[6]{0:T(8)(2,1)S(1)}) all-reduce(%t), to_apply=%add
}

%skipped (t.1: (f32[4])) -> (f32[4]) {
  ROOT %t.1 = (f32[4]{0:T(128)}) parameter(0)
}

%never (t.2: (f32[4])) -> (f32[4]) {
  ROOT %x = (f32[4]{0:T(128)}) all-reduce(%t.2), to_apply=%add
}

ENTRY %main (p0: f32[4]) -> f32[4] {
  %p0 = f32[4]{0:T(128)} parameter(0)
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(%p0), dimensions={0}
  %s.1 = f32[32]{0} all-gather-done(%s)
  %m = (s32[4]{0}, s32[4]{0}, u32[], u32[]) collective-permute-start(%p0)
  %h = (f32[2]{0:T(128)}, u32[], token[]) send(%p0), is_host_transfer=true
  %h.1 = token[] send-done(%h)
  %m.1 = s32[4]{0} collective-permute-done(%m)
  %e = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%p0, %p0)
  ROOT %o = (f32[4]{0}) conditional(%p0), branch_computations={%skipped, %taken}
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
  assert hlo.structure(PROGRAM).collectives == {
    'all-reduce': hlo.Traffic(1, 4 * 4 + 2 * 6),
    'all-gather': hlo.Traffic(1, 32 * 4),
    'collective-permute': hlo.Traffic(1, 4 * 4),
    'send': hlo.Traffic(1, 2 * 4),
  }
  assert hlo.structure(PROGRAM).total == hlo.Traffic(4, 28 + 128 + 16 + 8)


def test_operations_in_a_conditional_are_counted_by_branch():
  found = hlo.structure(PROGRAM)
  assert found.conditionals == 1
  assert (found.products, found.products_inside) == (3, 2)
  assert found.inside == hlo.Traffic(1, 28)


def test_products_of_a_compiled_conditional_are_counted_by_branch():
  def f(x, ascends):
    clean = x @ x
    return jax.lax.cond(ascends, lambda: jnp.tanh(clean @ x), lambda: clean)

  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  ascends = jax.ShapeDtypeStruct((), jnp.bool)
  found = hlo.structure(jax.jit(f).lower(x, ascends).compile().as_text())
  assert found.conditionals == 1
  assert (found.products, found.products_inside) == (2, 1)
  assert found.total == hlo.Traffic()


def test_products_of_a_compiled_loop_are_counted():
  def f(x):
    return jax.lax.scan(lambda c, _: (c @ x, None), x, length=20)[0]

  x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  found = hlo.structure(jax.jit(f).lower(x).compile().as_text())
  assert found.products == 1
