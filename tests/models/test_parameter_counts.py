"""Parameter counts: as published where they are, else from the architecture's description, by hand."""

import functools
import itertools
import math

import jax
import pytest
from support import scanned, shapes

import zoo


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


def transformer_count(D, L, DL, F, vocab_size):
  """One embedding for all; an encoder, and a decoder with cross-attention and its norm."""
  return vocab_size * D + blocks(D, L, F) + blocks(D, DL, F) + DL * (2 * D + 4 * (D * D + D))


def recurrent(gates, D, into, L, *, biases):
  """Layers of gated cells: for each gate a matrix of the input, one of the state."""
  return sum(gates * (width * D + D * D) + biases * D for width in (into, *[D] * (L - 1)))


def seq2seq_count(gates, E, D, L, vocab_size, A=0, *, tables=3, ways=1, fed=0):
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
  return tables * vocab_size * E + encoder + bridge + decoder + attention


def nat_count(D, L, DL, F, vocab_size, difference=20):
  """A Transformer, and a classifier of lengths."""
  return transformer_count(D, L, DL, F, vocab_size) + (D + 1) * (2 * difference + 1)


def bert_count(D, L, F, vocab_size=30_522, length=512, type_vocab_size=2):
  """The closed form: tables and their norm, encoder, pooler, the head of words and that of pairs."""
  on_top = D * D + D + 2 * D + vocab_size + 2 * D + 2
  return (vocab_size + length + type_vocab_size) * D + 2 * D + blocks(D, L, F) + D * D + D + on_top


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


def swin_count(D, depths, num_heads, window, *, patch_size=4, channels=3, ratio=4, classes=1000, v2=False):
  """Patches and their norm; stages of blocks with a relative position bias, all but the first merge patches; a head."""
  total = (patch_size * patch_size * channels * D + D) + 2 * D
  for stage, (depth, n) in enumerate(zip(depths, num_heads, strict=True)):
    if stage:
      D *= 2
      total += 2 * D * D + (2 * D if v2 else 4 * D)  # without bias; the norm is behind it or before
    # A small network of two coordinates, without a last bias, and a scale for each head; keys have no bias. Or a table.
    bias = (2 * 512 + 512 + 512 * n) + n - D if v2 else (2 * window - 1) ** 2 * n
    total += blocks(D, depth, int(ratio * D)) + depth * bias
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
  # A mask token, and a classifier of 512 colours.
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
  "swin/nano": swin_count(48, (2, 2), (3, 6), 7, patch_size=2, channels=1, ratio=2, classes=10),
  "swin/nano4": swin_count(48, (2, 2, 2), (3, 6, 12), 4, channels=1, ratio=2, classes=10),
  "swin/test": swin_count(24, (2, 4), (2, 6), 3, ratio=1.75, classes=7),
  # A mask token, and instead of a classifier the pixels of 32 x 32, the stride of the last map.
  "simmim/t": swin_count(96, (2, 2, 6, 2), (3, 6, 12, 24), 6, classes=32**2 * 3) + 96,
  "simmim/b": swin_count(128, (2, 2, 18, 2), (4, 8, 16, 32), 6, classes=32**2 * 3) + 128,
  "simmim/l": swin_count(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, classes=32**2 * 3) + 192,
  "simmim/nano": swin_count(48, (2, 2), (3, 6), 7, patch_size=2, channels=1, ratio=2, classes=4**2) + 48,
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


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_no_model_is_missing_from_the_table():
  assert set(COUNTS) == set(zoo.list_models())


@pytest.mark.parametrize("name", zoo.list_models())
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
