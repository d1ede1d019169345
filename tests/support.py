"""What tests of several rooms share."""

import contextlib
import functools
import inspect
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from matplotlib import image

import zoo
from zoo import partitioning
from zoo.models import segmenter

ROOT = Path(__file__).parents[1]
# A config of a run of seconds.
TINY_CONFIG = str(Path(__file__).with_name("tiny_config.py"))
# Texts that tokenizers find hard.
STRANGE = (
  "Hello, world!",
  "日本語 👍🏽 ﷽ x日本y",
  "[SEP] [CLS][MASK] <s>",
  "Ñandú, ¿fué? Àéî Straße ΑΣ",
  "a\x00b \ufffd \u200b c\u00ad-d e\u0301",
  "don't I'll 3.14 x" + "y" * 150,
  "",
)


def assert_names(text, *values):
  """The text names all of these values, numbers as whole numbers; the wording is not checked."""

  def is_named(value):
    if isinstance(value, int | float) and not isinstance(value, bool):
      return re.search(rf"(?<![\d.]){re.escape(str(value))}(?!\.?\d)", str(text))
    return str(value) in str(text)

  missing = [value for value in values if not is_named(value)]
  assert not missing, f"{missing} not named: {text}"


@contextlib.contextmanager
def raises(error, *named):
  """As `pytest.raises`, of an error that names all of these values; the wording is not checked."""
  with pytest.raises(error) as caught:
    yield caught
  assert_names(caught.value, *named)


def draw(*shape, seed=0):
  """Standard normal numbers, the same for the same shape and seed."""
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def relative_error(ours, theirs) -> float:
  """The largest difference over the largest value."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


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


def random_model(name, batch=2, **overrides):
  """A model, all of its variables random (a zero would make an error invisible), and inputs, noise included."""
  model = zoo.create(name, **overrides)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes(name, **overrides))
  for leaf in jax.tree.leaves(variables.get("batch_stats", {})):
    np.abs(leaf, out=leaf)
  inputs = [
    rng.normal(size=s.shape).astype(s.dtype)
    if s.dtype == np.float32
    else rng.integers(0, model.config.vocab_size, s.shape)
    for s in zoo.family(name).inputs(model.config, batch)
  ]
  if "noise_BP" in inspect.signature(type(model).__call__).parameters:
    inputs.append(rng.uniform(size=(batch, math.prod(model.config.grid))).astype(np.float32))
  return model, variables, inputs


def check_gradients(name, **overrides):
  """Compiles the model once, forward and backward; returns output and gradients."""
  model, variables, inputs = random_model(name, **overrides)

  def loss(params):
    output, aux = model.apply(variables | {"params": params}, *inputs)
    outputs = [
      output,
      *(aux[name] for name in ("length", "next_sentence") if name in aux),
    ]  # a second head's output is in aux
    return sum(jnp.square(o).mean() for o in outputs), (output, aux)

  grads, (output, aux) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
  assert np.isfinite(output).all() and output.dtype == jnp.float32
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(aux))
  largest = {path: np.abs(g).max() for path, g in partitioning.flatten(grads).items()}
  for path, size in largest.items():
    if path.endswith(("attn/k/bias", "cross/k/bias")):
      # Adds the same to all scores of a query, which the softmax takes away again: 0 but for rounding.
      assert size < 1e-3 * largest[path.replace("/k/", "/v/")], path
    else:
      assert 1e-10 < size < np.inf, path
  return output, aux


def random_variables(name, seed=0, **overrides):
  """Every parameter random: an initialiser's zeros would look alike wherever they went."""
  model = zoo.create(name, **overrides)
  rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
  shapes = jax.eval_shape(model.init, rngs, *zoo.family(name).inputs(model.config, 1))
  rng = np.random.default_rng(seed)
  return model, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def assert_bit_identical(ours, theirs):
  """Trees of the same paths, dtypes and bits."""
  ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
  assert ours.keys() == theirs.keys()
  for path in ours:
    assert ours[path].dtype == theirs[path].dtype, path
    assert np.asarray(ours[path]).tobytes() == np.asarray(theirs[path]).tobytes(), path


@functools.cache
def initialized(name, **overrides):
  """A model and its initial variables."""
  model = zoo.create(name, **overrides)
  zeros = [jnp.zeros(s.shape, s.dtype) for s in zoo.family(name).inputs(model.config, 1)]
  return model, jax.jit(model.init)({"params": jax.random.key(0), "mask": jax.random.key(1)}, *zeros)


def random_images(model, count=2):
  """Of the model's size, uint8."""
  shape = (count, *model.config.image_size, model.config.num_channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def assert_plotted(path):
  """The file is a plot that shows something."""
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.05


def grid_positions(size):
  """Row and column of each token of a map, [Y X, 2]."""
  return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)


def feature_maps(rng, widths=(4, 6, 8, 12), size=(13, 9), batch=2):
  """Maps of a hierarchical backbone, each half as large as the one before."""
  sizes = [tuple(-(-n // 2**i) for n in size) for i in range(len(widths))]
  return [rng.normal(size=(batch, *s, w)).astype(np.float32) for s, w in zip(sizes, widths, strict=True)]


class SegmentationHead(nn.Module):
  """A head by itself."""

  config: segmenter.Config

  @nn.compact
  def __call__(self, maps):
    return segmenter.Model.predict(self, maps)


# Fewer layers, since to compile takes as long as the program has lines: still more than one, or, where encoder and
# decoder could be confused, another number of each; a pair of windows in each stage, of which Swin has two.
SHALLOW = dict(
  vit=dict(depth=2),
  patch_prediction=dict(depth=2),
  mae=dict(depth=2, decoder_depth=1),
  transformer=dict(depth=1, decoder_depth=2),
  nat=dict(depth=1, decoder_depth=2),
  swin=dict(depths=(2, 2)),
  simmim=dict(depths=(2,), num_heads=(2,)),
)
