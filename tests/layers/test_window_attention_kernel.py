"""The window attention kernel is attention of windows that are cut out and put back, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads
from support import draw, raises

import zoo
from zoo.kernels import window_plan
from zoo.kernels.window_attention import window_attention
from zoo.layers.attention import dot_product_attention
from zoo.layers.windows import WindowLayout


def plain(layout, q, k, v, bias, more):
  """As zoo/models/swin.py does without the kernel, after the projections."""
  q, k, v = (
    (lambda a: a.reshape(*a.shape[:2], len(bias), -1))(layout.cut((x + b).astype(x.dtype)))
    for x, b in zip((q, k, v), more, strict=True)
  )
  out, _ = dot_product_attention(q, k, v, mask=layout.mask(len(q) // layout.count), bias=bias[None])
  whole = WindowLayout(layout.padded, layout.window_size, layout.rolled)
  return whole.window_reverse(out.reshape(*out.shape[:2], -1))


def ours(layout, *arrays):
  static = dict(window_size=layout.window_size, shift=layout.rolled, mask_WTT=layout.static_mask())
  return window_attention(*arrays, **static, interpret=True)


def arguments(layout, batch, width, heads, dtype=jnp.float32):
  T, shape = int(np.prod(layout.window_size)), (batch, *layout.padded, width)
  q, k, v = (jnp.asarray(draw(*shape, seed=i), dtype) for i in range(3))
  return q, k, v, jnp.asarray(draw(heads, T, T)), jnp.asarray(draw(3, width))


def both_ways(function, layout, arrays, of_out):
  @jax.jit
  def run(*arrays):
    out, pull = jax.vjp(functools.partial(function, layout), *arrays)
    return out, *pull(of_out)

  return run(*arrays)


# Map, window, shift, method; batch, width, heads. Pitches of 8, 12, 8 and 4 slots; a part of 64 lanes beside one of
# 128. Few windows, since each is a program of its own and compiling them is what takes time.
CASES = {
  "7": (((7, 7), (7, 7), (0, 0), "roll"), (2, 96, 3)),
  "7 shifted": (((7, 14), (7, 7), (0, 3), "roll"), (1, 24, 2)),
  "12 shifted": (((12, 12), (12, 12), (6, 6), "roll"), (1, 32, 1)),
  "192 lanes": (((4, 8), (4, 8), (0, 0), "roll"), (1, 192, 6)),
  "256 lanes": (((8, 8), (8, 8), (0, 0), "roll"), (1, 256, 8)),
  "4 shifted": (((4, 8), (4, 4), (2, 2), "roll"), (1, 16, 2)),
  "uneven": (((3, 5), (4, 4), (2, 0), "roll"), (1, 16, 2)),
  "padded shift": (((4, 3), (4, 3), (2, 0), "pad"), (1, 16, 1)),
}


@pytest.mark.parametrize(
  ("case", "dtype"), [*((case, jnp.float32) for case in CASES), ("7 shifted", jnp.bfloat16), ("uneven", jnp.bfloat16)]
)
def test_equal_to_the_plain_form(case, dtype):
  layout, sizes = WindowLayout(*CASES[case][0]), CASES[case][1]
  arrays = arguments(layout, *sizes, dtype)
  of_out = jnp.asarray(draw(*arrays[0].shape, seed=9), dtype)
  found, wanted = (both_ways(f, layout, arrays, of_out) for f in (ours, plain))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.03  # of the largest value
  for one, other in zip(found, wanted, strict=True):
    assert one.dtype == other.dtype and one.shape == other.shape
    one, other = (np.asarray(a, np.float32) for a in (one, other))
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_steps_of_a_part_of_a_map(monkeypatch):
  layout = WindowLayout((6, 4), (2, 4), (1, 0))
  arrays = arguments(layout, 2, 16, 2)
  monkeypatch.setattr(window_plan, "WINDOWS_A_STEP", 1)
  found, wanted = (both_ways(f, layout, arrays, arrays[0]) for f in (ours, plain))
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_a_query_that_may_see_nothing_gets_0():
  layout = WindowLayout((2, 2), (2, 2))
  arrays = arguments(layout, 1, 8, 2)
  mask = np.ones((1, 4, 4), bool)
  mask[0, 1] = False

  def run(*arrays):
    return window_attention(*arrays, mask_WTT=mask, window_size=(2, 2), interpret=True)

  out, pull = jax.vjp(run, *arrays)
  grads = pull(out)
  assert np.all(out[0, 0, 1] == 0) and np.all(grads[0][0, 0, 1] == 0) and np.all(grads[3][:, 1] == 0)
  assert np.abs(out[0, 0, 0]).max() > 0 and all(np.isfinite(g).all() for g in grads)


def test_finite_differences():
  layout = WindowLayout((2, 4), (2, 2), (0, 1))
  check_grads(functools.partial(ours, layout), arguments(layout, 1, 8, 2), 1, ["rev"], rtol=0.02, atol=0.02)


def test_remat_scan_and_export():
  layout = WindowLayout((2, 4), (2, 2), (0, 1))
  arrays = arguments(layout, 1, 8, 2)

  def twice(step, q, *rest):
    return jax.lax.scan(lambda x, _: (step(layout, x, *rest), None), q, None, 2)[0].sum()

  found, wanted = (
    jax.jit(jax.grad(functools.partial(twice, f), range(5)))(*arrays)
    for f in (jax.checkpoint(ours, static_argnums=0), plain)
  )
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
  exported = export.export(jax.jit(functools.partial(ours, layout)))(*arrays)
  np.testing.assert_allclose(exported.call(*arrays), ours(layout, *arrays), atol=1e-5)


@pytest.mark.parametrize(
  ("size", "window", "width", "heads", "named"),
  [
    ((7, 6), (3, 3), 8, 2, ((7, 6),)),
    ((3, 3), (3, 3), 8, 3, (3, 8)),
    ((3, 3), (3, 3), 144, 3, (3, 144, 128)),
    ((102, 102), (3, 3), 8, 2, ((102, 102), "MiB", "'xla'")),
  ],
)
def test_invalid_shapes(size, window, width, heads, named):
  x = jnp.zeros((1, *size, width))
  with raises(ValueError, *named):
    window_attention(x, x, x, jnp.zeros((heads, 9, 9)), window_size=window)


def test_models_with_and_without_the_kernel_are_the_same():
  v2 = dict(norm_position="res_post", attention_score="cosine", relative_position_bias="continuous")
  small = dict(width=8, depths=(2,), num_heads=(2,), window_size=2, image_size=(12, 16), **v2)
  image = jnp.asarray(draw(1, 12, 16, 3))  # a map of 3 x 4
  plain_model, model = (zoo.create("swin/test", attention=i, **small) for i in ("xla", "pallas_interpret"))
  variables = plain_model.init({"params": jax.random.key(0)}, image)
  ours = jax.jit(model.init)({"params": jax.random.key(0)}, image)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), variables, ours)

  def outputs(model):
    def run(variables):
      logits, aux = model.apply(variables, image)
      return jnp.square(logits).sum(), (logits, aux)

    return jax.jit(jax.grad(run, has_aux=True))(variables)

  found, wanted = outputs(model), outputs(plain_model)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, wanted)
