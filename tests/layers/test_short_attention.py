"""The kernel of attention over short sequences is its plain twin, forward and backward, in the Pallas interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads
from support import draw, raises, relative_error

from train import sharding
from zoo import partitioning
from zoo.kernels.short_attention import kernel_fits, short_attention, time_major
from zoo.layers.attention import dot_product_attention
from zoo.layers.multi_head_attention import Attention

# Of the largest value; bfloat16 has 8 bits, and the kernel rounds fewer intermediate results to it than XLA.
TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}
kernel = functools.partial(short_attention, interpret=True)


def plain(q, k, v, **options):
  """The twin, computed in float32 whatever the type."""
  wide = [a.astype(jnp.float32) for a in (q, k, v)]
  return dot_product_attention(*wide, **options)[0].astype(q.dtype)


def operands(B, T, S, N, H, dtype="float32", K=None):
  shapes = (B, T, N, H), (B, S, K or N, H), (B, S, K or N, H), (B, T, N, H)
  return [jnp.asarray(draw(*shape, seed=i), dtype) for i, shape in enumerate(shapes)]


@functools.partial(jax.jit, static_argnums=0)
def run(function, q, k, v, cotangent, mask, bias):
  """Output and the gradients of q, k, v and bias."""

  def of(q, k, v, bias):
    return function(q, k, v, mask=mask, bias=bias)

  out, pull = jax.vjp(of, q, k, v, bias)
  return out, *pull(cotangent)


def check(*shape, mask=None, bias=None, dtype="float32", K=None):
  arrays = operands(*shape, dtype, K)
  mask = None if mask is None else jnp.asarray(draw(*mask, seed=7) > -0.3)
  bias = None if bias is None else jnp.asarray(draw(*bias, seed=8))
  ours, theirs = run(kernel, *arrays, mask, bias), run(plain, *arrays, mask, bias)
  for a, b in zip(ours, theirs, strict=True):
    if a is not None:
      assert a.dtype == b.dtype and relative_error(a.astype("float32"), b.astype("float32")) < TOLERANCE[dtype]


@pytest.mark.parametrize("length", [16, 50, 197, 256])
def test_lengths(length):
  check(1, length, length, 2, 64, dtype="bfloat16" if length % 2 else "float32")


@pytest.mark.slow
@pytest.mark.parametrize("length", [49, 64, 144, 196, 257, 384, 512, 577, 1024])
def test_more_lengths(length):
  check(1, length, length, 1, 64)


def test_time_major_operands():
  check(8, 11, 13, 2, 64, mask=(8, 1, 1, 13), bias=(2, 11, 13))


@pytest.mark.parametrize(
  ("num_heads", "width", "dtype"),
  [(4, 32, "bfloat16"), (3, 64, "float32"), (2, 80, "bfloat16"), (4, 96, "float32"), (2, 128, "bfloat16")],
)
def test_head_widths_and_cross_attention(num_heads, width, dtype):
  check(1, 24, 37, num_heads, width, dtype=dtype)


# One of each form of mask and of bias.
@pytest.mark.parametrize(
  ("mask", "bias"),
  [
    ((2, 1, 1, 21), (2, 2, 18, 21)),
    ((1, 1, 1, 21), (1, 2, 18, 21)),
    ((2, 2, 1, 21), (2, 18, 21)),
    ((2, 1, 18, 21), (2, 1, 18, 21)),
    ((1, 1, 18, 21), (1, 1, 18, 21)),
    ((2, 2, 18, 21), (2, 1, 1, 21)),
    ((21,), None),
  ],
)
def test_masks_and_biases(mask, bias):
  check(2, 18, 21, 2, 64, mask=mask, bias=bias)


def test_bias_gradient_is_summed_over_steps_of_the_grid():
  check(17, 6, 6, 4, 64, bias=(4, 6, 6))


@pytest.mark.parametrize("key_heads", [1, 2])
def test_shared_key_heads(key_heads):
  check(1, 18, 21, 4, 32, K=key_heads)


@pytest.mark.parametrize("form", [(2, 1, 1, 21), (2, 1, 18, 21)])
def test_a_query_that_may_see_nothing_gets_0(form):
  q, k, v, cotangent = operands(2, 18, 21, 2, 64)
  mask = jnp.ones(form, bool).at[1].set(False)
  out, dq, dk, dv, _ = run(kernel, q, k, v, cotangent, mask, None)
  assert not any(np.any(a[1]) for a in (out, dq, dk, dv)) and all(np.any(a[0]) for a in (out, dq, dk, dv))


def test_causal():
  q, k, v, _ = operands(1, 18, 18, 2, 64)
  mask = jnp.tril(jnp.ones((1, 1, 18, 18), bool))
  first = kernel(q[:, :9], k[:, :9], v[:, :9], mask=mask[..., :9, :9])
  np.testing.assert_allclose(kernel(q, k, v, mask=mask)[:, :9], first, rtol=1e-5, atol=1e-6)


# ---- dropout


def with_dropout(q, k, v, key, rate=0.25):
  return kernel(q, k, v, dropout_rate=rate, dropout_key=key)


def test_dropout_drops_its_rate_and_keeps_the_mean():
  # Equal weights and values that are unit vectors: the output is the mask.
  q, v = jnp.zeros((4, 64, 2, 64)), jnp.broadcast_to(jnp.eye(64)[:, None], (4, 64, 2, 64))
  out = np.asarray(jax.jit(with_dropout)(q, q, v, jax.random.key(0)))
  assert np.all(np.isclose(out, 0) | np.isclose(out, 1 / 64 / 0.75))
  assert abs((out == 0).mean() - 0.25) < 4 * (0.25 * 0.75 / out.size) ** 0.5
  parts = out.reshape(4, 64, 2, 64).transpose(0, 2, 1, 3).reshape(8, -1)
  assert len(np.unique(parts, axis=0)) == 8  # each image and head has its own
  other = jax.jit(with_dropout)(q, q, v, jax.random.key(1))
  assert not np.array_equal(out, other)
  np.testing.assert_array_equal(kernel(q, q, v, dropout_rate=0.5), kernel(q, q, v))


def test_gradients():
  q, k, v, _ = operands(1, 5, 6, 2, 64)
  mask, bias = jnp.asarray(draw(1, 1, 5, 6) > -1), jnp.asarray(draw(2, 5, 6))

  def function(q, k, v, bias):
    return kernel(q, k, v, mask=mask, bias=bias, dropout_rate=0.25, dropout_key=jax.random.key(0))

  check_grads(jax.jit(function), (q, k, v, bias), 1, ["rev"], 1e-2, 1e-2)


# ---- transformations


def test_vmap_scan_and_remat():
  q, k, v, cotangent = operands(2, 18, 21, 2, 64)
  double = [jnp.stack([a, a[::-1]]) for a in (q, k, v)]
  np.testing.assert_allclose(jax.vmap(kernel)(*double)[1], kernel(q, k, v)[::-1], rtol=1e-6)

  def looped(q, k, v, layer):
    step = jax.checkpoint(lambda x, _: (layer(x, k, v), None))
    return jnp.vdot(jax.lax.scan(step, q, length=2)[0], cotangent)

  grads = [jax.jit(jax.grad(looped, (0, 1, 2)), static_argnums=3)(q, k, v, f) for f in (kernel, plain)]
  for ours, theirs in zip(*grads, strict=True):
    assert relative_error(ours, theirs) < 1e-5


def test_export():
  q, k, v, _ = operands(2, 18, 21, 2, 64)
  exported = export.export(jax.jit(kernel))(q, k, v)
  np.testing.assert_array_equal(jax.jit(exported.call)(q, k, v), jax.jit(kernel)(q, k, v))


@pytest.mark.parametrize("scan", [False, True])
def test_weights_that_nobody_reads_are_not_computed(scan):
  x = jnp.asarray(draw(2, 48, 128))
  layer = Attention(2, implementation="pallas_interpret")
  params = layer.init(jax.random.key(0), x)

  def loss(params):
    def step(x, _):
      out, weights, _ = layer.apply(params, x)
      return out, weights

    y, weights = jax.lax.scan(step, x, length=2) if scan else step(x, None)
    return jnp.square(y).sum(), weights

  text = jax.jit(lambda p: jax.grad(loss, has_aux=True)(p)[0]).lower(params).compile().as_text()
  assert "f32[2,2,48,48]" not in text and "f32[2,2,2,48,48]" not in text
  xla = layer.clone(implementation="xla")
  np.testing.assert_allclose(layer.apply(params, x)[0], xla.apply(params, x)[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(layer.apply(params, x)[1], xla.apply(params, x)[1])


@pytest.mark.parametrize("sizes", [dict(data=4, fsdp=1, tensor=2), dict(data=2, fsdp=4, tensor=1)])
def test_a_mesh_does_not_change_the_result(sizes):
  """On a mesh every device runs the kernel on its own examples and heads."""
  arrays = operands(8, 6, 7, 2, 64)
  mask, bias = jnp.asarray(draw(8, 1, 1, 7) > -1), jnp.asarray(draw(2, 6, 7))
  way = sharding.Jit(sharding.make_mesh(**sizes))
  place = NamedSharding(way.mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))

  def function(*args):
    with way._cutting():
      return run.__wrapped__(kernel, *args)

  program = jax.jit(function).lower(*jax.device_put(arrays, place), mask, bias).compile()
  assert "all-gather(" not in program.as_text()
  ours = program(*jax.device_put(arrays, place), mask, bias)
  for a, b in zip(ours, run(kernel, *arrays, mask, bias), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  key = jax.random.key(0)

  def dropped(q, k, v):
    with way._cutting():
      return with_dropout(q, k, v, key)

  zeros, v = jnp.zeros((8, 16, 2, 64)), jnp.broadcast_to(jnp.eye(64)[:, None], (8, 64, 2, 64))
  out = np.asarray(jax.jit(dropped)(zeros, jnp.zeros_like(v), v)).transpose(0, 2, 1, 3).reshape(16, -1)
  assert len(np.unique(out, axis=0)) == 16  # devices do not drop the same


def test_errors():
  for shape, named in (((1, 2048, 2048, 2, 64), (2048,)), ((1, 16, 16, 2, 24), (24,))):
    with raises(ValueError, *named):
      kernel(*operands(*shape)[:3])
  with raises(ValueError, 4, 3):
    kernel(*operands(1, 16, 16, 4, 32, K=3)[:3])
  with raises(ValueError, "'flash'"):
    dot_product_attention(*operands(1, 16, 16, 4, 32)[:3], implementation="flash")


def test_scope_without_split():
  assert partitioning.split(lambda part, x: x + part, [(None,)], (None,), jnp.ones(3)).tolist() == [1, 1, 1]


# ---- biases of queries, keys and values


@pytest.mark.parametrize(("shape", "rate"), [((8, 11, 13, 2, 64), 0.0), ((2, 16, 24, 4, 32), 0.25)])
def test_biases_of_the_projections(shape, rate):
  """Added by the kernel, and their gradients summed there, as if added before; in either order of the operands."""
  B, T, S, N, H = shape
  q, k, v, cotangent = operands(*shape, K=N // 2)
  biases = [jnp.asarray(draw(*own, seed=i)) for i, own in enumerate(((N, H), (N // 2, H), (N // 2, H)))]
  options = dict(mask=jnp.asarray(draw(B, 1, 1, S, seed=7) > -0.3), bias=jnp.asarray(draw(N, T, S, seed=8)))
  options |= dict(dropout_rate=rate, dropout_key=jax.random.key(0))

  def inside(q, k, v, *biases):
    return kernel(q, k, v, biases=biases, **options)

  def before(q, k, v, *biases):
    return kernel(*(a + b for a, b in zip((q, k, v), biases, strict=True)), **options)

  found = [
    jax.jit(lambda *args, f=f: (f(*args), jax.vjp(f, *args)[1](cotangent)))(q, k, v, *biases) for f in (inside, before)
  ]
  (ours, grads), (theirs, wanted) = found
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  for a, b in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5)
  assert not np.any(grads[4])  # of the keys' bias


@pytest.mark.parametrize("length", [10, 16])
def test_the_layer_with_biases_is_its_plain_twin(length):
  x = jnp.asarray(draw(8, length, 128))
  plain_layer = Attention(2, implementation="xla")
  params = jax.tree.map(lambda a: a + 0.1, plain_layer.init(jax.random.key(0), x))

  def found(layer):
    def loss(params, x):
      return jnp.square(layer.apply(params, x)[0]).sum()

    return layer.apply(params, x), jax.grad(loss, (0, 1))(params, x)

  ours, theirs = found(plain_layer.clone(implementation="pallas_interpret")), found(plain_layer)
  largest = max(np.abs(a).max() for a in jax.tree.leaves(theirs))  # the key bias has no gradient but rounding errors
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize(
  ("heads", "keys", "fits"),
  [
    ((128, 196, 12, 64), 196, True),
    ((32, 512, 12, 64), 512, True),
    ((64, 577, 16, 80), 577, True),
    ((8, 1024, 12, 64), 1024, True),
    ((8, 1024, 16, 80), 1024, False),
    ((8, 1025, 12, 64), 1025, False),
    ((8, 196, 12, 24), 196, False),
  ],
)
def test_auto_takes_the_kernel_where_vmem_holds_it(heads, keys, fits):
  assert kernel_fits(heads, keys, 2) == fits


def test_operands_are_turned_where_a_step_holds_8_examples():
  assert time_major((128, 197, 12, 64), 197) and time_major((128, 257, 16, 64), 257)
  for heads in ((128, 256, 12, 64), (4, 197, 12, 64), (128, 577, 16, 64), (128, 257, 16, 80)):
    assert not time_major(heads, heads[1])
