"""Relative positions and rotations are those of Hugging Face's T5, Llama, GPT-J and Bloom. Needs the extra [parity]."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.t5.modeling_t5 import T5Attention

from zoo.layers.position_embeddings import (
  BucketedRelativePositionBias,
  alibi_bias,
  alibi_slopes,
  apply_rotary,
  relative_position_bucket,
)

pytestmark = pytest.mark.parity


def draw(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


SIZES = [(32, 128, True), (32, 128, False), (16, 64, True), (10, 37, True), (7, 20, False), (256, 2000, True)]


@pytest.mark.parametrize("buckets, max_distance, bidirectional", SIZES)
def test_buckets_are_those_of_t5(buckets, max_distance, bidirectional):
  relative = np.arange(-3000, 3001)
  theirs = T5Attention._relative_position_bucket(torch.tensor(relative), bidirectional, buckets, max_distance)
  ours = relative_position_bucket(jnp.asarray(relative), buckets, max_distance, bidirectional)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("decoder", [False, True])
def test_relative_bias_is_that_of_t5(decoder):
  config = transformers.T5Config(d_model=12, num_heads=3, d_kv=4, is_decoder=decoder)
  theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
  table = draw(32, 3)
  theirs.relative_attention_bias.weight.data = torch.tensor(table)
  ours = BucketedRelativePositionBias(num_heads=3, bidirectional=not decoder)
  bias = ours.apply({"params": {"buckets": table}}, jnp.arange(50)[None], jnp.arange(70)[None])
  np.testing.assert_array_equal(bias, theirs.compute_bias(50, 70).detach())


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rotary_is_that_of_llama(base):
  x, positions = draw(2, 5, 3, 16), np.array([[0, 1, 2, 3, 4], [7, 0, 300, 2000, 5]])
  config = transformers.LlamaConfig(
    hidden_size=48, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": base}
  )
  cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(torch.tensor(x), torch.tensor(positions))
  theirs, _ = modeling_llama.apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin, unsqueeze_dim=2)
  np.testing.assert_allclose(apply_rotary(x, positions, base), theirs, rtol=1e-4, atol=2e-4)


def test_the_other_pairing_is_a_permutation_of_features():
  # GPT-J pairs neighbours, as the paper does.
  x, positions = draw(1, 9, 2, 8), np.arange(9)[None]
  sin, cos = modeling_gptj.create_sinusoidal_positions(9, 8)[None].chunk(2, -1)
  theirs = modeling_gptj.apply_rotary_pos_emb(torch.tensor(x), sin, cos)
  order = [0, 2, 4, 6, 1, 3, 5, 7]
  np.testing.assert_allclose(apply_rotary(x[..., order], positions), theirs[..., order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 20, 112])
def test_alibi_is_that_of_bloom(num_heads):
  theirs = build_alibi_tensor(torch.ones(1, 6, dtype=torch.int64), num_heads, torch.float32)  # [N, 1, S]: slope * s
  np.testing.assert_allclose(alibi_slopes(num_heads), theirs[:, 0, 1], rtol=1e-6)
  # Bloom's has no query position: relative to the last key, ours differs by a constant that a softmax cancels.
  ours = alibi_bias(num_heads, jnp.array([[5]]), jnp.arange(6)[None])[0]
  np.testing.assert_allclose(ours - ours[..., :1], theirs, rtol=1e-5, atol=1e-6)
