"""The Transformer is torch.nn's and Hugging Face's: every layer, gradients, and what is decoded, token for token.

Needs the extra [parity].
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden.make_goldens import make
from support import relative_error

import zoo
from zoo import decoding
from zoo.layers.position_embeddings import sincos_1d
from zoo.layers.sequence_info import SequenceInfo
from zoo.weights import convert, tables

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # matrices so small that threads would only wait for each other

# Padding is not 0: where it is, Hugging Face's beam search fills up with ends.
B, S, T, V, PAD, EOS = 3, 7, 6, 29, 1, 3
SOURCE = np.random.default_rng(0).integers(4, V, (B, S)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(4, V, (B, T)).astype(np.int32)
REAL_SOURCE = np.arange(S) < np.array([[7], [3], [5]])
REAL_TARGET = np.arange(T) < np.array([[4], [6], [1]])
SOURCE[~REAL_SOURCE] = PAD
LABELS = np.random.default_rng(2).integers(4, V, (B, T))
ROWS = SequenceInfo(), SequenceInfo(REAL_TARGET.astype(np.int32))


def tensor(array):
  return torch.from_numpy(np.asarray(array)).long()


def ours(model, params):
  """All that is compared, at real positions (padding's own outputs are nobody's), and the gradients of a loss: the mean
  cross-entropy of the real labels."""

  def loss(params):
    output, aux = model.apply({"params": params}, SOURCE, TARGET, *ROWS)
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(output), LABELS[..., None], -1)[..., 0]
    kept = {name: value for name, value in aux.items() if not name.endswith("cache")}
    return (nll_BT * REAL_TARGET).sum() / REAL_TARGET.sum(), kept | {"output": output}

  gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
  return {name: at_real_positions(name, value) for name, value in found.items()}, gradients


def at_real_positions(name, value):
  value = np.asarray(value)
  if "weights" in name:  # [B, N, queries, keys]
    value = value.swapaxes(1, 2)
  return value[REAL_TARGET if name.startswith("decoder/") or name == "output" else REAL_SOURCE]


def template(model):
  return jax.eval_shape(model.init, {"params": jax.random.key(0)}, SOURCE, TARGET)["params"]


def gradient_error(found, expected):
  """Over the largest of all: biases of keys have gradient 0, for a softmax does not see them."""
  largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
  return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), found, expected)))


def cross_entropy(logits):
  labels = torch.where(torch.from_numpy(REAL_TARGET), torch.from_numpy(LABELS), -100)
  return torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1))


def by_name(model, value=lambda p: p):
  return {name: value(p).detach().numpy() for name, p in model.named_parameters()}


# ---- torch.nn.Transformer


class Theirs(torch.nn.Module):
  """torch.nn.Transformer, and what it leaves to others: embeddings, positions, the output."""

  def __init__(self, **options):
    super().__init__()
    self.embed = torch.nn.Embedding(V, 24)
    sizes = dict(num_encoder_layers=2, num_decoder_layers=3, dim_feedforward=40)
    self.transformer = torch.nn.Transformer(24, 4, **sizes, dropout=0.0, batch_first=True, **options)
    generator = torch.Generator().manual_seed(0)
    for name, p in self.named_parameters():
      p.data = float("norm" in name and name.endswith("weight")) + 0.2 * torch.randn(p.shape, generator=generator)

  def forward(self, source, target):
    positions = torch.from_numpy(sincos_1d(np.arange(16), 24))
    source, target = (self.embed(tokens) * 24**0.5 + positions[: tokens.shape[1]] for tokens in (source, target))
    real_source, real_target = torch.from_numpy(REAL_SOURCE), torch.from_numpy(REAL_TARGET)
    out = self.transformer(
      source,
      target,
      tgt_mask=torch.triu(torch.ones(T, T, dtype=torch.bool), 1),  # True = may not attend
      src_key_padding_mask=~real_source,
      memory_key_padding_mask=~real_source,
      tgt_key_padding_mask=~real_target,
    )
    return out @ self.embed.weight.T


@pytest.mark.parametrize(("order", "activation"), [("post", "relu"), ("pre", "gelu")])
def test_torch_nn_transformer(order, activation):
  # In training mode, without dropout: evaluation takes a short cut around the layers, which nothing then observes.
  theirs = Theirs(norm_first=order == "pre", activation=activation).train()
  expected = {}

  def keep(name):
    return lambda module, inputs, output: expected.update({name: at_real_positions(name, output.detach())})

  for side, prefix in (("encoder", ""), ("decoder", "decoder/")):
    for i, layer in enumerate(getattr(theirs.transformer, side).layers):
      layer.register_forward_hook(keep(f"{prefix}block_{i:02d}"))
  theirs.transformer.encoder.register_forward_hook(keep("tokens"))
  logits = theirs(tensor(SOURCE), tensor(TARGET))
  expected["output"] = at_real_positions("output", logits.detach())
  # Its stacks end in a norm, whatever the order.
  model = zoo.create("transformer/test", norm_position=order, final_norm=True, activation=activation, pad_token_id=PAD)
  table = tables.of("transformer").tables(model.config)["torch"]
  params = convert(by_name(theirs), table, template(model))
  found, found_gradients = ours(model, params)
  assert len(expected) == 7
  assert max(relative_error(found[name], value) for name, value in expected.items()) < 1e-5
  cross_entropy(logits).backward()
  gradients = convert(by_name(theirs, lambda p: p.grad), table, template(model))
  assert gradient_error(found_gradients, gradients) < 1e-5


# ---- Hugging Face

SIZES = dict(
  vocab_size=V,
  d_model=24,
  encoder_layers=2,
  decoder_layers=3,
  encoder_attention_heads=4,
  decoder_attention_heads=4,
  encoder_ffn_dim=40,
  decoder_ffn_dim=40,
  max_position_embeddings=16,
  pad_token_id=PAD,
  decoder_start_token_id=2,
  bos_token_id=2,
  eos_token_id=EOS,
  forced_eos_token_id=None,
)
MARIAN = dict(kind="MarianMTModel", **SIZES)
CASES = {
  # As published ones are: a target begins with padding.
  "marian": MARIAN | dict(activation_function="swish", scale_embedding=True, decoder_start_token_id=PAD),
  "marian_two_tables": MARIAN | dict(activation_function="relu", share_encoder_decoder_embeddings=False),
  "bart": SIZES | dict(kind="BartForConditionalGeneration"),
  "mbart": SIZES | dict(kind="MBartForConditionalGeneration", scale_embedding=True),
}


def make_theirs(case, seed=0, **changes):
  """A random model; the bias of its logits, which is none of its parameters, is made one, so that it has a gradient."""
  theirs = make(**CASES[case] | changes, seed=seed)
  bias = 0.2 * torch.randn(theirs.final_logits_bias.shape, generator=torch.Generator().manual_seed(seed))
  del theirs.final_logits_bias
  theirs.final_logits_bias = torch.nn.Parameter(bias)
  return theirs


def load(theirs, directory, **overrides):
  """As files; `transformer/test` has these sizes, which config.json has."""
  theirs.save_pretrained(directory)
  overrides |= (
    {} if theirs.config.to_dict().get("share_encoder_decoder_embeddings", True) else dict(tie_embeddings="target")
  )
  return zoo.load(directory, **overrides)


@pytest.mark.parametrize("case", CASES)
def test_hugging_face(case, tmp_path):
  theirs = make_theirs(case)
  model, variables = load(theirs, tmp_path)
  assert (model.config.bos_token_id, model.config.eos_token_id) == (theirs.config.decoder_start_token_id, EOS)
  for module in theirs.modules():
    if isinstance(module, torch.nn.Embedding):
      module.padding_idx = None  # theirs keeps padding from learning where it is read, ours where it is masked
  out = theirs(
    input_ids=tensor(SOURCE),
    attention_mask=torch.from_numpy(REAL_SOURCE),
    decoder_input_ids=tensor(TARGET),
    decoder_attention_mask=torch.from_numpy(REAL_TARGET),
    output_hidden_states=True,
    output_attentions=True,
  )
  expected = {"tokens": out.encoder_last_hidden_state, "output": out.logits}
  for prefix, hidden in (("", out.encoder_hidden_states), ("decoder/", out.decoder_hidden_states)):
    # With a norm after the last block, what they call its output comes after that.
    hidden = hidden[1:-1] if model.config.final_norm else hidden[1:]
    expected |= {f"{prefix}block_{i:02d}": x for i, x in enumerate(hidden)}
  expected |= {f"block_{i:02d}/weights": x for i, x in enumerate(out.encoder_attentions)}
  expected |= {f"decoder/block_{i:02d}/weights": x for i, x in enumerate(out.decoder_attentions)}
  expected |= {f"decoder/block_{i:02d}/cross_weights": x for i, x in enumerate(out.cross_attentions)}
  expected["embedded"] = out.encoder_hidden_states[0]
  found, found_gradients = ours(model, variables["params"])
  errors = {k: relative_error(found[k], at_real_positions(k, v.detach())) for k, v in expected.items()}
  assert len(errors) >= 14
  assert max(errors.values()) < 1e-5, errors
  cross_entropy(out.logits).backward()
  # Fixed positions have no gradient; they go as they are, to be compared with ours.
  table = tables.of("transformer").tables(model.config)["huggingface"]
  gradients = convert(by_name(theirs, lambda p: p if p.grad is None else p.grad), table, template(model))
  assert gradient_error(found_gradients, gradients) < 1e-5


@pytest.mark.parametrize("case", ["marian", "bart"])
def test_hugging_face_reads_what_we_write(case, tmp_path):
  theirs = make_theirs(case)
  model, variables = load(theirs, tmp_path)
  config_fields = {f: v for f, v in vars(model.config).items() if f != "dtype"}
  zoo.save(tmp_path / "model.safetensors", "transformer/test", config_fields, variables, layout="huggingface")
  again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
  inputs = dict(input_ids=tensor(SOURCE), attention_mask=torch.from_numpy(REAL_SOURCE))
  with torch.no_grad():
    logits, wanted = (m(**inputs, decoder_input_ids=tensor(TARGET)).logits for m in (again.eval(), theirs))
  assert relative_error(logits, wanted) < 1e-5  # other kernels of attention


# ---- decoding


LENGTH = 14


class Translators:
  """The same model twice. It has begun to learn to copy, so that its outputs are of all lengths and not always the
  same word, as it is with random weights."""

  def __init__(self, seed, directory):
    self.theirs = make_theirs("marian", seed)
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(self.theirs.parameters(), lr=5e-3)
    for _ in range(150):
      source = self.draw_sources(draw, draw.integers(1, 9, 32))
      labels = torch.where(source == PAD, -100, source)
      loss = self.theirs(input_ids=source, attention_mask=source != PAD, labels=labels).loss
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    self.model, self.variables = load(self.theirs, directory)
    self.source = self.draw_sources(draw, np.array([8, 4, 1, 6, 7, 2]))

  @staticmethod
  def draw_sources(draw, lengths):
    position, lengths = np.arange(9), lengths[:, None]
    words = draw.integers(4, V, (len(lengths), 9))
    return tensor(np.where(position < lengths, words, np.where(position == lengths, EOS, PAD)))

  def generate(self, **options):
    """Tokens after the first, which is the beginning, filled up to the length; and scores of a beam search."""
    out = self.theirs.generate(
      self.source,
      attention_mask=self.source != PAD,
      max_new_tokens=LENGTH,
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
      **options,
    )
    tokens = np.full((len(out.sequences), LENGTH), PAD)
    tokens[:, : out.sequences.shape[1] - 1] = out.sequences[:, 1:]
    return tokens.reshape(len(self.source), -1, LENGTH), getattr(out, "sequences_scores", None)

  def decode(self, method, **options):
    c = self.model.config

    @jax.jit
    def run(variables, source):
      parts = decoding.decode_step_of(self.model, variables, source, LENGTH)
      return method(
        *parts,
        bos_token_id=c.bos_token_id,
        eos_token_id=c.eos_token_id,
        pad_token_id=c.pad_token_id,
        max_length=LENGTH,
        **options,
      )

    decoded = run(self.variables, np.asarray(self.source, np.int32))
    return np.asarray(decoded.sequences_BUT), np.asarray(decoded.scores_BU)


@pytest.fixture(scope="module", params=range(2))
def pair(request, tmp_path_factory):
  return Translators(request.param, tmp_path_factory.mktemp("marian"))


def check_varied(tokens_BNT):
  """Sequences that end, at several lengths."""
  lengths = np.cumsum(tokens_BNT == EOS, -1).argmax(-1)[(tokens_BNT == EOS).any(-1)]
  assert len(set(lengths.tolist())) >= 3 and len(np.unique(tokens_BNT)) > 8


def test_greedy_decoding_is_generate(pair):
  wanted, _ = pair.generate(num_beams=1)
  check_varied(wanted)
  found, _ = pair.decode(decoding.greedy)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("beam", "alpha"), [(4, 1.0), (3, 0.0), (5, 2.0)])
def test_beam_search_is_generate(pair, beam, alpha):
  """Their score is ours with length_normalization="power": the sum of the logarithms over the number of new tokens to
  the power of `length_penalty`, where the end counts and the beginning does not.

  When they stop is another matter. Ours is `early_stopping="never"`: as soon as nothing can get better. Their default,
  False, guesses that no sequence gets better by growing, which with alpha > 0 may miss the best; True takes the first
  `beam` that end.
  """
  wanted, wanted_scores = pair.generate(
    num_beams=beam, num_return_sequences=beam, length_penalty=alpha, early_stopping="never"
  )
  check_varied(wanted)
  found, scores = pair.decode(
    decoding.beam_search, beam_size=beam, n_best=beam, length_penalty=alpha, length_normalization="power"
  )
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_allclose(scores.ravel(), wanted_scores, rtol=1e-5)
