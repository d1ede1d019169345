"""What every model promises, and what ViT and MAE do: counts, gradients, types, shapes, masks, errors."""

import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from train.objectives import mae as mae_objective
from zoo import axes
from zoo.models import mae
from zoo.positions import resample
from zoo.stack import stack_params

# ---- Parameter counts: as published where they are, else from the architecture's description, by hand. ----


def blocks(D, L, F):
  """Two norms, four projections, an MLP; all with biases."""
  return L * (2 * 2 * D + 4 * (D * D + D) + (D * F + F) + (F * D + D))


def vit_count(patch, D, L, F, *, side=224, channels=3, classes=1000):
  """The patch projection, class token and positions, the blocks, the last norm, the classifier."""
  patches = math.prod(side) if isinstance(side, tuple) else side * side
  patches //= patch * patch
  tokens = (patch * patch * channels * D + D) + D + (patches + 1) * D
  return tokens + blocks(D, L, F) + 2 * D + (D * classes + classes)


def mae_count(patch, D, L, F, DD, DL, DF, *, channels=3):
  """No positions, no classifier; and a decoder with a projection in, a mask token and pixels out."""
  pixels = patch * patch * channels
  encoder = (pixels * D + D) + D + blocks(D, L, F) + 2 * D
  return encoder + (D * DD + DD) + DD + blocks(DD, DL, DF) + 2 * DD + (DD * pixels + pixels)


def convnext_count(patch, widths, depths, *, channels=3, classes=1000):
  """Stem and its norm; norms and convolutions between stages; blocks; the last norm, the classifier."""
  total = (patch * patch * channels + 1) * widths[0] + 2 * widths[0]
  total += sum(2 * C + (4 * C + 1) * D for C, D in itertools.pairwise(widths))
  for D, L in zip(widths, depths, strict=True):
    total += L * ((7 * 7 + 1) * D + 2 * D + (D * 4 * D + 4 * D) + (4 * D * D + D) + D)
  return total + 2 * widths[-1] + (widths[-1] + 1) * classes


def hybrid_count(width, stages, patch, cell, *vit, channels=3, **kwargs):
  """The root; units of three convolutions with their norms, the first of a stage with a fourth; a ViT of the map."""
  total, C = 7 * 7 * channels * width + 2 * width, width
  for i, depth in enumerate(stages):
    narrow, wide = width * 2**i, 4 * width * 2**i
    total += (C + 1) * wide + wide  # of the first unit's projection
    for _ in range(depth):
      total += C * narrow + 3 * 3 * narrow**2 + narrow * wide + 2 * (narrow + narrow + wide)
      C = wide
  return total + vit_count(patch, *vit, channels=channels, **kwargs) + (cell**2 * C - patch**2 * channels) * vit[0]


def transformer_count(D, L, DL, F, vocab):
  """One embedding for all; an encoder, and a decoder with cross-attention and its norm."""
  return vocab * D + blocks(D, L, F) + blocks(D, DL, F) + DL * (2 * D + 4 * (D * D + D))


def recurrent(gates, D, into, L, *, biases):
  """Layers of gated cells: for each gate a matrix of the input, one of the state."""
  return sum(gates * (width * D + D * D) + biases * D for width in (into, *[D] * (L - 1)))


def seq2seq_count(gates, E, D, L, vocab, A=0, *, tables=3, ways=1, fed=0):
  """Embeddings and words; encoder, decoder; with attention to keys A wide the query's part, the keys', the readout.

  A GRU of three gates has four biases, since its state's part of the new value has one of its own. With `ways=2` the
  encoder's layers read what both ways of the layer before found, and a layer leads from both states to the decoder's.
  """
  cell = functools.partial(recurrent, gates, D, biases=4)
  encoder = ways * (cell(E, 1) + (L - 1) * cell(ways * D, 1))
  parts = {3: 1, 4: 2}[gates]  # of a state
  bridge = L * parts * D * (2 * parts * D + 1) if ways == 2 else 0
  context = ways * D if A else 0
  decoder = cell(E + fed + (context if A and not fed else 0), L)
  attention = context * A + ((context + D) * E + E if A else 0) + (D * A + A if A and not fed else 0)
  return tables * vocab * E + encoder + bridge + decoder + attention


def nat_count(D, L, DL, F, vocab, difference=20):
  """A Transformer, and a classifier of lengths."""
  return transformer_count(D, L, DL, F, vocab) + (D + 1) * (2 * difference + 1)


def bert_count(D, L, F, vocab=30_522, length=512, types=2):
  """The closed form: tables and their norm, encoder, pooler, the head of words and that of pairs."""
  heads = D * D + D + 2 * D + vocab + 2 * D + 2
  return (vocab + length + types) * D + 2 * D + blocks(D, L, F) + D * D + D + heads


def filter_count(side, inputs, D, norm=True):
  """A convolution, with a norm or a bias."""
  return side * side * inputs * D + (2 * D if norm else D)


def grown_count(D, *steps):
  """Of a ViT's map, others: so many doublings of the map for each; a norm between two."""
  return sum(n * (4 * D * D + 4 * D) + max(n - 1, 0) * 2 * D for n in steps)


def fpn_count(widths, D, classes):
  """Laterals, a filter for each level, one for each doubling up to the first, the classifier."""
  levels = len(widths) * filter_count(3, D, D // 2) + 3 * filter_count(3, D // 2, D // 2)
  smooth = len(widths) * filter_count(3, D, D, norm=False)
  return sum(filter_count(1, w, D, norm=False) for w in widths) + smooth + levels + (D // 2 * classes + classes)


def upernet_count(widths, D, classes, bins=4):
  """What is pooled, laterals, filters, the fusion of all levels, the classifier."""
  pooled = bins * filter_count(1, widths[-1], D) + filter_count(3, widths[-1] + bins * D, D)
  laterals = sum(filter_count(1, w, D) + filter_count(3, D, D) for w in widths[:-1])
  return pooled + laterals + filter_count(3, len(widths) * D, D) + (D * classes + classes)


def swin_count(D, depths, heads, window, *, patch=4, channels=3, ratio=4, classes=1000, v2=False):
  """Patches and their norm; stages of blocks with scores by offset, each after the first merging patches; a head."""
  total = (patch * patch * channels * D + D) + 2 * D
  for stage, (depth, n) in enumerate(zip(depths, heads, strict=True)):
    if stage:
      D *= 2
      total += 2 * D * D + (2 * D if v2 else 4 * D)  # without bias; the norm is behind it or before
    # A small network of two coordinates, without a last bias, and a scale for each head; keys have no bias. Or a table.
    offsets = (2 * 512 + 512 + 512 * n) + n - D if v2 else (2 * window - 1) ** 2 * n
    total += blocks(D, depth, int(ratio * D)) + depth * offsets
  return total + 2 * D + (D * classes + classes)


TI, S, M, BASE = (192, 12, 768), (384, 12, 1536), (512, 12, 2048), (768, 12, 3072)
L, H, G_SMALL, G = (1024, 24, 4096), (1280, 32, 5120), (1408, 40, 6144), (1664, 48, 8192)
COUNTS = {
  "vit/ti8": vit_count(8, *TI),
  "vit/ti14": vit_count(14, *TI),
  "vit/ti16": 5_717_416,
  "vit/ti32": vit_count(32, *TI),
  "vit/s8": vit_count(8, *S),
  "vit/s14": vit_count(14, *S),
  "vit/s16": 22_050_664,
  "vit/s32": vit_count(32, *S),
  "vit/m8": vit_count(8, *M),
  "vit/m14": vit_count(14, *M),
  "vit/m16": vit_count(16, *M),
  "vit/m32": vit_count(32, *M),
  "vit/b8": vit_count(8, *BASE),
  "vit/b14": vit_count(14, *BASE),
  "vit/b16": 86_567_656,
  "vit/b32": 88_224_232,
  "vit/l8": vit_count(8, *L),
  "vit/l14": vit_count(14, *L),
  "vit/l16": 304_326_632,
  "vit/l32": 306_535_400,
  "vit/h8": vit_count(8, *H),
  "vit/h14": 632_045_800,
  "vit/h16": vit_count(16, *H),
  "vit/h32": vit_count(32, *H),
  "vit/g8": vit_count(8, *G_SMALL),
  "vit/g14": vit_count(14, *G_SMALL),
  "vit/g16": vit_count(16, *G_SMALL),
  "vit/g32": vit_count(32, *G_SMALL),
  "vit/G8": vit_count(8, *G),
  "vit/G14": vit_count(14, *G),
  "vit/G16": vit_count(16, *G),
  "vit/G32": vit_count(32, *G),
  "vit/nano4": vit_count(4, 96, 4, 192, side=28, channels=1, classes=10),
  "vit/test": vit_count(4, 24, 3, 40, side=(20, 12), classes=7),
  "mae/b16": 111_655_680,
  "mae/l16": 329_239_296,
  "mae/h14": 656_613_964,
  "mae/nano4": mae_count(4, 96, 4, 192, 48, 1, 96, channels=1),
  "mae/test": mae_count(4, 24, 3, 40, 16, 2, 28),
  # As published, and as Hugging Face's have it (`tests/parity/test_parity_convnext.py`).
  "convnext/t": 28_589_128,
  "convnext/s": 50_223_688,
  "convnext/b": 88_591_464,
  "convnext/l": 197_767_336,
  "convnext/nano": convnext_count(2, (32, 64, 128), (2, 3, 1), channels=1, classes=10),
  "convnext/test": convnext_count(4, (8, 12, 20), (1, 2, 1), classes=7),
  # As timm has it; the others as published.
  "hybrid/r_ti16": 6_337_704,
  "hybrid/r26_s32": 36_431_912,
  "hybrid/r50_b16": 98_659_112,
  "hybrid/r50_l32": 328_994_856,
  "hybrid/test": hybrid_count(8, (1, 2), 16, 2, 24, 2, 40, side=(48, 32), classes=7),
  # A vector for what is hidden, and a classifier of 512 colours.
  "patch_prediction/s16": vit_count(16, *S, classes=512) + 384,
  "patch_prediction/b16": vit_count(16, *BASE, classes=512) + 768,
  "patch_prediction/l16": vit_count(16, *L, classes=512) + 1024,
  "patch_prediction/nano4": vit_count(4, 96, 4, 192, side=28, channels=1, classes=8) + 96,
  "patch_prediction/test": vit_count(4, 24, 3, 40, side=(20, 12), classes=512) + 24,
  "swin/t": 28_288_354,
  "swin/s": 49_606_258,
  "swin/b": 87_768_224,
  "swin/l": 196_532_476,
  "swin/b_w12_384": 87_903_584,
  "swin/l_w12_384": 196_735_516,
  "swin/v2_t": 28_347_154,  # as timm counts swinv2_tiny_window8_256, and so on
  "swin/v2_s": 49_728_418,
  "swin/v2_b": 87_918_816,
  "swin/nano": swin_count(48, (2, 2), (3, 6), 7, patch=2, channels=1, ratio=2, classes=10),
  "swin/nano4": swin_count(48, (2, 2, 2), (3, 6, 12), 4, channels=1, ratio=2, classes=10),
  "swin/test": swin_count(24, (2, 4), (2, 6), 3, ratio=1.75, classes=7),
  # A vector for what is hidden, and for a classifier the pixels of 32 x 32, or of what the last map has a place for.
  "simmim/t": swin_count(96, (2, 2, 6, 2), (3, 6, 12, 24), 6, classes=32**2 * 3) + 96,
  "simmim/b": swin_count(128, (2, 2, 18, 2), (4, 8, 16, 32), 6, classes=32**2 * 3) + 128,
  "simmim/l": swin_count(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, classes=32**2 * 3) + 192,
  "simmim/nano": swin_count(48, (2, 2), (3, 6), 7, patch=2, channels=1, ratio=2, classes=4**2) + 48,
  "simmim/test": swin_count(24, (2, 4), (2, 6), 3, ratio=1.75, classes=8**2 * 3) + 24,
  "nat/base": nat_count(512, 6, 6, 2048, 37_000),
  "nat/nano": nat_count(128, 3, 3, 512, 4000),
  "nat/test": nat_count(24, 2, 3, 40, 29, 3),
  "transformer/base": 63_082_496,  # "65 million" in Vaswani et al. 2017, table 3
  "transformer/big": transformer_count(1024, 6, 6, 4096, 37_000),
  "transformer/nano": transformer_count(128, 3, 3, 512, 4000),
  "transformer/test": transformer_count(24, 2, 3, 40, 29),
  "segmenter/linear": vit_count(16, *S, side=512, classes=150),
  "segmenter/fpn": vit_count(16, *S, side=512, classes=0) + grown_count(384, 2, 1) + fpn_count(4 * [384], 256, 150),
  "segmenter/upernet": vit_count(16, *S, side=512, classes=0)
  + grown_count(384, 2, 1)
  + upernet_count(4 * [384], 512, 150),
  "segmenter/test": vit_count(8, 24, 2, 40, side=(40, 24), classes=0)
  + grown_count(24, 1)
  + upernet_count(4 * [24], 20, 7, bins=2),
  "kernel_regression/average": 0,
  "kernel_regression/gaussian": 0,
  "kernel_regression/learned": 1,
  "kernel_regression/test": 1,
  # Published, with the tied head of words and the one of pairs; the encoder with its pooler is tested below.
  "bert/tiny": 4_433_468,
  "bert/mini": 11_267_900,
  "bert/small": 29_058_876,
  "bert/medium": 41_668_412,
  "bert/base": 110_106_428,
  "bert/large": 336_226_108,
  "bert/minilm": bert_count(384, 6, 1536),
  "bert/nano": bert_count(192, 3, 768, 4000, 0) + 2 * 192,  # rotary positions; a last norm
  "bert/test": bert_count(24, 2, 40, 29, 16),
  "seq2seq/distracted": seq2seq_count(4, 1000, 1000, 4, 80_000),
  "seq2seq/bahdanau": seq2seq_count(3, 620, 1000, 1, 30_000, 1000, ways=2),
  "seq2seq/luong": seq2seq_count(4, 1000, 1000, 4, 50_000, 1000, fed=1000),
  "seq2seq/nano_distracted": seq2seq_count(4, 192, 192, 2, 4000, tables=1),
  "seq2seq/nano_bahdanau": seq2seq_count(3, 128, 224, 1, 4000, 128, tables=1, ways=2),
  "seq2seq/nano_luong": seq2seq_count(4, 128, 200, 2, 4000, 200, tables=1, fed=128),
  "seq2seq/test": seq2seq_count(3, 20, 24, 2, 29, 16, ways=2),
}
TESTS = zoo.names("*/test")


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def shapes(name, **overrides):
  """Of all variables. Nothing is computed, so the largest models cost no more than the smallest."""
  model = zoo.create(name, **overrides)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(1)}
  inputs = zoo.family(name).inputs(model.config, 1)
  return jax.eval_shape(functools.partial(model.init, rngs), *inputs)


def scanned(name):
  """The override that compiles one layer for all, where there are layers."""
  return {"scan": True} if hasattr(zoo.create(name).config, "scan") else {}


def test_no_model_is_missing_from_the_table():
  assert set(COUNTS) == set(zoo.names())


@pytest.mark.parametrize("name", zoo.names())
def test_parameter_count(name):
  assert count(shapes(name, **scanned(name)).get("params", {})) == COUNTS[name]


def test_the_closed_forms_give_the_published_counts():
  assert vit_count(16, *S) == COUNTS["vit/s16"] and vit_count(14, *H) == COUNTS["vit/h14"]
  assert mae_count(16, *L, 512, 8, 2048) == COUNTS["mae/l16"]
  assert convnext_count(4, (128, 256, 512, 1024), (3, 3, 27, 3)) == COUNTS["convnext/b"]
  assert hybrid_count(64, (3, 4, 6, 3), 32, 1, *L) == COUNTS["hybrid/r50_l32"]
  assert hybrid_count(64, (), 32, 8, *TI) == COUNTS["hybrid/r_ti16"]
  assert swin_count(96, (2, 2, 6, 2), (3, 6, 12, 24), 7) == COUNTS["swin/t"]
  assert swin_count(128, (2, 2, 18, 2), (4, 8, 16, 32), 12) == COUNTS["swin/b_w12_384"]
  assert swin_count(96, (2, 2, 18, 2), (3, 6, 12, 24), 8, v2=True) == COUNTS["swin/v2_s"]
  assert transformer_count(512, 6, 6, 2048, 37_000) == COUNTS["transformer/base"]
  assert bert_count(768, 12, 3072) == COUNTS["bert/base"] and bert_count(128, 2, 512) == COUNTS["bert/tiny"]
  without = {size: count(shapes(f"bert/{size}", head="none", scan=True)) for size in ("tiny", "base", "large")}
  assert without == dict(tiny=4_385_920, base=109_482_240, large=335_141_888)
  # Sutskever et al. 2014, 3.4: 64M in recurrent layers, 32M of them in the encoder.
  sizes = {part: count(shapes("seq2seq/distracted")["params"][part]) for part in ("encoder", "decoder")}
  assert sizes == dict.fromkeys(sizes, recurrent(4, 1000, 1000, 4, biases=4)) == dict.fromkeys(sizes, 32_016_000)
  assert count(shapes("vit/b16", image_size=(384, 384), scan=True)) == 86_859_496  # published, too
  assert count(shapes("vit/test")) == COUNTS["vit/test"]  # a loop has as many as a scan


# ---- What every model promises ----


def draw(name, batch=2, **overrides):
  """A model, all of its variables random (so that no zero hides anything), and inputs that leave nothing to chance."""
  model = zoo.create(name, **overrides)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes(name, **overrides))
  for leaf in jax.tree.leaves(variables.get("batch_stats", {})):
    np.abs(leaf, out=leaf)
  inputs = [
    rng.normal(size=s.shape).astype(s.dtype) if s.dtype == np.float32 else rng.integers(0, model.config.vocab, s.shape)
    for s in zoo.family(name).inputs(model.config, batch)
  ]
  if "noise_BP" in inspect.signature(type(model).__call__).parameters:
    inputs.append(rng.uniform(size=(batch, math.prod(model.config.grid))).astype(np.float32))
  return model, variables, inputs


def check_gradients(name, **overrides):
  """Compiles the model once, forward and backward; returns output and gradients."""
  model, variables, inputs = draw(name, **overrides)

  def loss(params):
    output, aux = model.apply(variables | {"params": params}, *inputs)
    told = [output, *(aux[name] for name in ("length", "next") if name in aux)]  # a second head's output is in aux
    return sum(jnp.square(o).mean() for o in told), (output, aux)

  grads, (output, aux) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
  assert np.isfinite(output).all() and output.dtype == jnp.float32
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(aux))
  largest = {path: np.abs(g).max() for path, g in axes.flatten(grads).items()}
  for path, size in largest.items():
    if path.endswith(("attn/k/bias", "cross/k/bias")):
      # Adds the same to all scores of a query, which the softmax takes away again: 0 but for rounding.
      assert size < 1e-3 * largest[path.replace("/k/", "/v/")], path
    else:
      assert 1e-10 < size < np.inf, path
  return output, aux


@pytest.mark.parametrize("name", TESTS)
def test_output_is_finite_and_every_parameter_learns(name):
  check_gradients(name)


@functools.cache
def compiled(name):
  model, variables, inputs = draw(name, batch=3)
  return jax.jit(model.apply), variables, inputs


@pytest.mark.parametrize("name", TESTS)
def test_jit_is_eager(name):
  apply, variables, inputs = compiled(name)
  eager, jitted = zoo.create(name).apply(variables, *inputs), apply(variables, *inputs)
  assert jax.tree.structure(eager) == jax.tree.structure(jitted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), eager, jitted)


@pytest.mark.parametrize("name", TESTS)
def test_neither_the_order_of_the_batch_nor_the_company_matters(name):
  apply, variables, inputs = compiled(name)
  output, _ = apply(variables, *inputs)
  assert np.abs(output[0] - output[1]).max() > 1e-3
  for choice in ([2, 0, 1], [1, 1, 0]):
    chosen, _ = apply(variables, *[x[np.array(choice)] for x in inputs])
    np.testing.assert_allclose(chosen, output[np.array(choice)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_is_for_computing_only(name, scan):
  model, variables, inputs = draw(name, dtype="bfloat16", **scanned(name) if scan else {})
  init = jax.eval_shape(functools.partial(model.init, {"params": jax.random.key(0)}), *inputs)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init))

  def loss(variables):
    output, aux = model.apply(variables, *inputs)
    return jnp.square(output).sum(), (output, aux)

  grads, (output, aux) = jax.eval_shape(jax.grad(loss, has_aux=True), variables)
  assert output.dtype == jnp.float32
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
  assert {array.dtype for key, array in aux.items() if key in ("tokens", "block_00")} <= {jnp.dtype("bfloat16")}
  weights = [array for key, array in aux.items() if key.endswith(("weights", "alignment"))]
  assert bool(weights) != name.startswith("convnext/")  # which does not attend
  assert all(array.dtype == jnp.float32 for array in weights)


def test_features_are_float32_too():
  model, variables, inputs = draw("vit/test", dtype="bfloat16", num_classes=0)
  output, aux = jax.eval_shape(model.apply, variables, *inputs)
  assert output.dtype == aux["features"].dtype == jnp.float32


@pytest.mark.parametrize("name", TESTS)
def test_bfloat16_is_near_float32(name):
  apply, variables, inputs = compiled(name)
  wanted = np.asarray(apply(variables, *inputs)[0])
  output, _ = jax.jit(zoo.create(name, dtype="bfloat16").apply)(variables, *inputs)
  assert 0 < np.abs(output - wanted).max() < 0.1 * np.abs(wanted).max()


# ---- ViT ----

TINY = dict(depth=1, width=8, mlp_dim=12)


@pytest.mark.parametrize(
  "overrides",
  [
    dict(positions="none"),
    dict(positions="learned_2d", pool="gap"),
    dict(positions="sincos_2d", pool="map"),
    dict(positions="relative", class_token=False, pool="gap"),
    dict(positions="learned_1d", class_token=False, pool="map", representation=5),
    dict(pool="gap", head_norm="layer", final_norm=False, image_size=(8, 16)),
    dict(pool="gap", head_norm="batch", class_token=False, activation="gelu_tanh"),
    dict(representation=5, num_classes=0, channels=1),
  ],
  ids=str,
)
def test_vit_combinations(overrides):
  output, aux = check_gradients("vit/test", **TINY, **overrides)
  c = zoo.create("vit/test", **TINY, **overrides).config
  features = c.representation or c.width
  assert output.shape == (2, c.num_classes or features) and aux["features"].shape == (2, features)
  tokens = math.prod(c.grid) + c.class_token
  assert aux["tokens"].shape == aux["embedded"].shape == (2, tokens, c.width)
  assert aux["block_00/weights"].shape == (2, c.heads, tokens, tokens)
  tokens_BTD = np.asarray(aux["tokens"])
  if overrides.get("num_classes") is None and c.pool == "gap" and c.head_norm == "none":
    np.testing.assert_allclose(aux["features"], tokens_BTD[:, int(c.class_token) :].mean(1), rtol=1e-4, atol=1e-5)


def run(name, *inputs, variables=None, **overrides):
  """Output and aux of small models, not compiled: they share their few operations."""
  model, drawn, own = draw(name, **TINY, **overrides)
  return model.apply(variables or drawn, *(inputs or own))


def test_what_is_pooled():
  for pool, of in (("cls", lambda t: t[:, 0]), ("gap", lambda t: t[:, 1:].mean(1))):
    _, aux = run("vit/test", pool=pool)
    np.testing.assert_allclose(aux["features"], of(np.asarray(aux["tokens"])), rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_text():
  model = zoo.create("bert/test", head="classify", num_classes=3, pool="mean")
  token = jax.random.randint(jax.random.key(0), (2, 7), 5, 29)
  variables = model.init(jax.random.key(1), token)
  assert "pooler" not in variables["params"]
  logits, aux = model.apply(variables, token)
  head = variables["params"]["head"]
  np.testing.assert_allclose(logits, aux["tokens"].mean(1) @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
  padded, _ = model.apply(variables, jnp.pad(token, ((0, 0), (0, 3))))
  np.testing.assert_allclose(padded, logits, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match=r"pool='mean'.*pool='cls'"):
    model.apply(variables, token, first_BK=jnp.zeros((2, 1), jnp.int32))
  with pytest.raises(ValueError, match="pool is 'max'"):
    zoo.create("bert/test", pool="max")


@pytest.mark.parametrize("positions", ["learned_1d", "learned_2d", "sincos_2d", "none"])
def test_other_image_sizes(positions):
  """Positions are resampled: an image of other size is encoded as a model of that size with a resampled table would."""
  image = np.random.default_rng(1).normal(size=(2, 28, 8, 3)).astype(np.float32)
  output, aux = run("vit/test", image, positions=positions)
  assert np.isfinite(output).all() and aux["tokens"].shape == (2, 7 * 2 + 1, 8)
  _, variables, _ = draw("vit/test", **TINY, positions=positions)
  small = variables["params"]["encoder"].get("pos", {})
  pos = dict(small)
  if positions == "learned_1d":
    pos["table"] = resample(small["table"], (7, 2))
  if positions == "learned_2d":
    pos["row"] = resample(small["row"][:, None], (7, 1))[:, 0]
    pos["column"] = resample(small["column"][None], (1, 2))[0]
  encoder = variables["params"]["encoder"] | ({"pos": pos} if pos else {})
  of_that_size = {"params": variables["params"] | {"encoder": encoder}}
  wanted, _ = run("vit/test", image, variables=of_that_size, positions=positions, image_size=(28, 8))
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def test_positions_tell_patches_apart():
  """Without them, and with a mean over patches, a shuffled image is the same image; with them it is another."""
  _, _, (image,) = draw("vit/test", **TINY)
  halves = np.concatenate([image[:, 8:], image[:, :8]], 1)
  for positions in ("none", "learned_1d", "learned_2d", "sincos_2d", "relative"):
    outputs = [run("vit/test", x, positions=positions, pool="gap", class_token=False)[0] for x in (image, halves)]
    difference = np.abs(outputs[0] - outputs[1]).max()
    assert difference < 1e-6 if positions == "none" else difference > 1e-4, positions


def test_relative_positions_know_one_length():
  with pytest.raises(ValueError, match="made for 16 tokens and got 15"):
    run("vit/test", np.zeros((1, 28, 8, 3), np.float32), positions="relative")


def test_scan_with_everything_on():
  overrides = dict(TINY, depth=2, positions="relative", pool="map", head_norm="batch", representation=5)
  model, variables, inputs = draw("vit/test", **overrides)
  wanted, _ = model.apply(variables, *inputs)
  stacked = variables | {"params": stack_params(variables["params"])}
  output, _ = zoo.create("vit/test", scan=True, remat="dots_saveable", **overrides).apply(stacked, *inputs)
  np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_only_with_its_rng():
  model, variables, inputs = draw("vit/test", **TINY)
  wanted, _ = model.apply(variables, *inputs)
  for rates in (dict(dropout=0.5), dict(attention_dropout=0.5), dict(drop_path=0.5, depth=2)):
    other = zoo.create("vit/test", **TINY | rates)
    if "depth" in rates:
      _, variables, inputs = draw("vit/test", **TINY | dict(depth=2))
      wanted, _ = zoo.create("vit/test", **TINY | dict(depth=2)).apply(variables, *inputs)
    np.testing.assert_array_equal(other.apply(variables, *inputs)[0], wanted)
    one, again, two = (other.apply(variables, *inputs, rngs={"dropout": jax.random.key(k)})[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any() and (one != wanted).any(), rates


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_with_depth(scan):
  """A block whose two branches are dropped hands its input on: so of rate^2 of the examples."""
  overrides = dict(TINY, depth=3, width=4, mlp_dim=4, image_size=(4, 4), scan=scan)
  model, variables, (image,) = draw("vit/test", batch=600, **overrides)
  model = zoo.create("vit/test", drop_path=0.8, **overrides)
  _, aux = jax.jit(model.apply)(variables, image, rngs={"dropout": jax.random.key(0)})
  names = ["embedded", "block_00", "block_01", "block_02"]
  same = [(aux[a] == aux[b]).all((1, 2)).mean() for a, b in itertools.pairwise(names)]
  np.testing.assert_allclose(same, [0, 0.4**2, 0.8**2], atol=0.06)
  assert same[0] == 0


# ---- MAE ----


@pytest.mark.parametrize("variant", ["test", "nano4", "b16", "l16", "h14"])
def test_the_encoder_is_a_vit(variant):
  ours = shapes(f"mae/{variant}")["params"]["encoder"]
  theirs = shapes(f"vit/{variant}", positions="sincos_2d")["params"]["encoder"]
  assert jax.tree.map(lambda a: a.shape, ours) == jax.tree.map(lambda a: a.shape, theirs)


def test_masks_are_uniform_and_of_static_size():
  noise = np.random.default_rng(0).uniform(size=(4000, 10)).astype(np.float32)
  visible, masked, restore = (np.asarray(a) for a in jax.jit(mae.random_mask, static_argnums=1)(noise, 0.75))
  assert visible.shape == (4000, 2) and masked.shape == restore.shape == (4000, 10)
  assert (masked.sum(1) == 8).all()
  np.testing.assert_array_equal(np.take_along_axis(masked, visible, 1), False)
  # By the same noise: the least of it stays.
  np.testing.assert_array_equal(visible, np.argsort(noise, 1)[:, :2])
  np.testing.assert_array_equal(np.take_along_axis(np.argsort(noise, 1), restore, 1), np.tile(np.arange(10), (4000, 1)))
  # Every patch as often (binomial, five deviations), and every pair of patches as often.
  assert np.abs(masked.mean(0) - 0.8).max() < 5 * np.sqrt(0.8 * 0.2 / 4000)
  pairs = (~masked).T.astype(int) @ (~masked)
  off_diagonal = pairs[np.triu_indices(10, 1)] / 4000
  assert np.abs(off_diagonal - 1 / 45).max() < 5 * np.sqrt(1 / 45 / 4000)


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.5, 8), (0.75, 4), (0.9, 1)])
def test_how_many_are_kept(ratio, kept):
  visible, masked, _ = jax.eval_shape(lambda n: mae.random_mask(n, ratio), jax.ShapeDtypeStruct((3, 16), jnp.float32))
  assert visible.shape == (3, kept) and masked.dtype == bool


@pytest.mark.parametrize("ratio", [1.0, -0.1, 0.99])
def test_ratios_that_cannot_be(ratio):
  with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps .* of 16 patches; wanted 0 <= mask_ratio < 1"):
    mae.random_mask(np.zeros((1, 16)), ratio)


MAE = dict(decoder_depth=1, decoder_width=8, decoder_mlp_dim=8, decoder_heads=2)


@functools.cache
def small_mae(ratio):
  model, variables, inputs = draw("mae/test", **TINY, **MAE)
  return jax.jit(functools.partial(model.apply, mask_ratio=ratio)), variables, inputs


def test_the_encoder_sees_only_visible_patches():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  assert aux["tokens"].shape == (2, int(15 * 0.4) + 1, 8) and pixels.shape == (2, 15, 48)
  masked = np.asarray(aux["masked"]).reshape(2, 5, 3).repeat(4, 1).repeat(4, 2)[..., None]
  other = np.where(masked, -3.0, image).astype(np.float32)
  assert masked.sum() == 2 * 9 * 16
  hidden_pixels, hidden_aux = apply(variables, other, noise)
  np.testing.assert_array_equal(hidden_aux["tokens"], aux["tokens"])
  np.testing.assert_array_equal(hidden_pixels, pixels)
  _, seen_aux = apply(variables, np.where(masked, image, image + 1).astype(np.float32), noise)
  assert (np.abs(seen_aux["tokens"] - aux["tokens"]).max((1, 2)) > 1e-3).all()


def test_no_mask_is_the_vit_of_all_patches():
  apply, variables, (image, noise) = small_mae(0.0)
  _, aux = apply(variables, image, noise)
  assert not aux["masked"].any()
  vit = zoo.create("vit/test", **TINY, positions="sincos_2d", num_classes=0)
  _, wanted = vit.apply({"params": {"encoder": variables["params"]["encoder"]}}, image)
  order = np.argsort(noise, 1)
  wanted = np.concatenate(
    [wanted["tokens"][:, :1], np.take_along_axis(wanted["tokens"][:, 1:], order[..., None], 1)], 1
  )
  np.testing.assert_allclose(aux["tokens"], wanted, rtol=1e-4, atol=1e-5)


def test_which_patches_are_shown_matters_and_not_in_which_order():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  # The same patches stay visible, in the opposite order of noise.
  turned, _ = apply(variables, image, np.where(aux["masked"], noise, noise.min() - noise).astype(np.float32))
  np.testing.assert_allclose(turned, pixels, rtol=1e-4, atol=1e-5)


def test_only_masked_patches_are_learned_from():
  apply, variables, (image, noise) = small_mae(0.6)
  pixels, aux = apply(variables, image, noise)
  gradient = jax.grad(lambda p: mae_objective.reconstruction_loss(p, image, aux["masked"], 4, True).sum())(pixels)
  np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, aux["masked"])


def test_masks_are_drawn_for_each_image_from_the_rng():
  model, variables, (image, _) = draw("mae/test", **TINY, **MAE)
  masks = [model.apply(variables, image, rngs={"mask": jax.random.key(k)})[1]["masked"] for k in (0, 0, 1)]
  np.testing.assert_array_equal(masks[0], masks[1])
  assert (masks[0] != masks[2]).any() and (masks[0][0] != masks[0][1]).any()


@pytest.mark.parametrize(
  "overrides", [dict(class_token=False, pool="gap"), dict(positions="learned_2d", image_size=(8, 12)), dict(scan=True)]
)
def test_mae_combinations(overrides):
  if "scan" in overrides:
    check = functools.partial(check_gradients, "mae/test", **TINY | dict(depth=2), **MAE | dict(decoder_depth=2))
  else:
    check = functools.partial(check_gradients, "mae/test", **TINY, **MAE)
  pixels, aux = check(**overrides)
  assert {"tokens", "masked", "block_00", "decoder/block_00", "decoder/block_00/weights"} <= set(aux)
  assert pixels.shape[1] == aux["masked"].shape[1]


# ---- What cannot be ----


def test_names():
  assert zoo.names("vit/s*") == ["vit/s8", "vit/s14", "vit/s16", "vit/s32"]
  assert set(TESTS) >= {"vit/test", "mae/test"} and zoo.names("nothing*") == []
  families = {name.partition("/")[0] for name in zoo.names()}
  assert {f"{family}/test" for family in families} <= set(TESTS)


@pytest.mark.parametrize("name", ["vit/b61", "vitt/b16", "b16", ""])
def test_unknown_model(name):
  with pytest.raises(ValueError, match=f"unknown model '{name}'.*There are: .*vit/b16") as error:
    zoo.create(name)
  # Where the family is known its own are enough.
  assert ("mae/b16" in str(error.value)) == (name != "vit/b61")
  if name == "vit/b61":
    with pytest.raises(ValueError, match=r"did you mean 'vit/b16'\?"):
      zoo.create(name)


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (dict(widht=3), r"vit/test has no field 'widht'; did you mean 'width'\?"),
    (dict(decoder_width=3), "vit/test has no field 'decoder_width'"),
    (dict(depth="12"), r"vit/test: depth is '12' \(str\); wanted int"),
    (dict(depth=2.0), r"vit/test: depth is 2.0 \(float\); wanted int"),
    (dict(depth=True), r"vit/test: depth is True \(bool\); wanted int"),
    (dict(scan=1), r"vit/test: scan is 1 \(int\); wanted bool"),
    (dict(dropout="no"), r"vit/test: dropout is 'no' \(str\); wanted float"),
    (dict(image_size="large"), "vit/test: image_size is 'large'; wanted rows and columns"),
    (dict(image_size=(224, 224, 3)), r"image_size is \(224, 224, 3\); wanted rows and columns"),
    (dict(image_size=2.5), "image_size is 2.5; wanted rows and columns"),
    (dict(pool="mean"), "pool is 'mean'.*There are: cls, gap, map"),
    (dict(head_norm="group"), "head_norm is 'group'.*There are: none, layer, batch"),
    (dict(class_token=False), "pool='cls' needs class_token=True"),
    (dict(activation="softplus"), "activation is 'softplus'.*There are: gelu, gelu_tanh, relu"),
    (dict(dtype="float16"), "dtype is 'float16'; did you mean 'bfloat16'"),
    (dict(patch=0, depth=-1), "patch is 0; wanted at least 1\ndepth is -1"),
    (dict(num_classes=-1), "num_classes is -1; wanted at least 0"),
    (dict(drop_path=1.0), "drop_path is 1.0; wanted 0 <= drop_path < 1"),
    (dict(image_size=30), "30 x 30 pixels cannot be cut into 4 x 4 patches: 30 is no multiple of 4"),
  ],
)
def test_fields_that_cannot_be(overrides, message):
  with pytest.raises(ValueError, match=message):
    zoo.create("vit/test", **overrides)


def test_fields_that_are_bent():
  c = zoo.create("vit/test", image_size=224, dropout=0).config
  assert c.image_size == (224, 224) and isinstance(c.dropout, (int, float))
  assert zoo.create("vit/test", image_size=[8, 16]).config.grid == (2, 4)


def init(name, image=(1, 20, 12, 3), **overrides):
  model = zoo.create(name, **overrides)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
  return jax.eval_shape(functools.partial(model.init, rngs), jax.ShapeDtypeStruct(image, jnp.float32))


@pytest.mark.parametrize("name", ["vit/test", "mae/test"])
def test_models_that_cannot_be(name):
  with pytest.raises(ValueError, match=r"20 x 13 pixels cannot be cut into 4 x 4 patches: 13 is no.*the nearest is 12"):
    init(name, (1, 20, 13, 3))
  with pytest.raises(ValueError, match=r"5 heads do not divide the width 24; try one of \[1, 2, 3, 4, 6, 8, 12\]"):
    init(name, heads=5)
  with pytest.raises(ValueError, match=r"positions is 'sincos'; did you mean 'sincos_2d'"):
    init(name, positions="sincos")
  with pytest.raises(ValueError, match=r"image_BYXC has rank 3"):
    init("vit/test", (20, 12, 3))


def test_maes_that_cannot_be():
  with pytest.raises(ValueError, match="an MAE cannot use relative positions"):
    zoo.create("mae/test", positions="relative")
  with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
    init("mae/test", decoder_heads=3)
  with pytest.raises(ValueError, match="sincos_2d needs a width that is a multiple of 4, got 18"):
    init("mae/test", decoder_width=18, decoder_heads=2)
