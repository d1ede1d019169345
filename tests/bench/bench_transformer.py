"""The Transformer against PyTorch's, and what packing is worth.

    pip install -e '.[parity]'
    python tests/bench/bench_transformer.py [--only train decode packing] [--rounds 5]

train: steps of Transformer base against torch.nn.Transformer with the same embeddings, head, batch and loss.
decode: greedy decoding with a cache against Hugging Face's `generate` (MarianMTModel) with the same weights, equally
many tokens on both sides. Both in float32, in turns, with two threads, each side in a process of its own.
packing: tokens of the bundled verses a second, padding not counted, in training steps of the small Transformer.
"""

import argparse
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import timing

VOCAB, PAD, EOS = 37000, 0, 3


def sentences(batch: int, length: int, shortest: int) -> np.ndarray:
  """[B, length] tokens, filled up with padding."""
  draw = np.random.default_rng(0)
  tokens, lengths = draw.integers(4, VOCAB, (batch, length)), draw.integers(shortest, length + 1, (batch, 1))
  lengths[0] = length
  return np.where(np.arange(length) < lengths, tokens, PAD)


def jax_step(model, arrays: dict):
  """A compiled training step of ours, and the state it begins with."""
  import jax

  from train import optim, rng
  from train.objectives import seq2seq
  from train.step import init_state, make_step

  variables = jax.jit(model.init)(
    rng.streams(rng.root(0), "params"), arrays["source_ids"][:1], arrays["target_ids"][:1]
  )
  optimizer, _ = optim.make(variables["params"], 1000, model=model, learning_rate=1e-4, weight_decay=0.01)
  state = init_state(variables, optimizer)
  step = jax.jit(make_step(seq2seq.Objective(label_smoothing=0.1), model, optimizer), donate_argnums=0)
  return step, state, rng.root(0)


def our_training(batch: int, length: int):
  """Nothing to tell, and the step as a function of nothing."""
  import jax

  import zoo

  source, target = sentences(batch, length, length // 2), sentences(batch, length, length // 2)[::-1]
  arrays = dict(source_ids=source, target_ids=target, valid=np.ones(batch, bool), id=np.arange(batch))
  for side in ("source", "target"):
    arrays[f"{side}_segment_ids"] = (arrays[f"{side}_ids"] != PAD).astype(int)
    arrays[f"{side}_position_ids"] = np.arange(length)[None].repeat(batch, 0)
  step, *holder, key = jax_step(zoo.create("transformer/base"), arrays)
  step = step.lower(*holder, arrays, key).compile()

  def run():
    holder[0], metrics = step(holder[0], arrays, key)
    jax.block_until_ready((holder[0], metrics))

  return None, run


def their_training(batch: int, length: int):
  """The same of PyTorch."""
  import torch

  import zoo
  from zoo.layers.position_embeddings import sincos_1d

  torch.set_num_threads(2)
  c = zoo.create("transformer/base").config
  source, target = sentences(batch, length, length // 2), sentences(batch, length, length // 2)[::-1]
  inputs = np.concatenate([np.full((batch, 1), c.bos_token_id), target[:, :-1]], 1)
  source, inputs, target = map(torch.tensor, (source, inputs, target.copy()))
  causal = torch.nn.Transformer.generate_square_subsequent_mask(length)
  positions = torch.tensor(sincos_1d(np.arange(length), c.width))
  dropout = torch.nn.Dropout(c.dropout_rate)
  sizes = dict(num_encoder_layers=c.depth, num_decoder_layers=c.decoder_depth, dim_feedforward=c.mlp_dim)
  model = torch.nn.Transformer(c.width, c.num_heads, **sizes, dropout=c.dropout_rate, batch_first=True)
  for module in model.modules():  # it drops attention weights as well; ours, as in Vaswani et al. 2017, 5.4, do not
    if isinstance(module, torch.nn.MultiheadAttention):
      module.dropout_rate = c.attention_dropout_rate
  model.embed = torch.nn.Embedding(c.vocab_size, c.width)
  torch.nn.init.normal_(model.embed.weight, std=c.width**-0.5)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

  def embed(tokens):
    return dropout(model.embed(tokens) * c.width**0.5 + positions)

  def run():
    optimizer.zero_grad()
    out = model(
      embed(source),
      embed(inputs),
      tgt_mask=causal,
      tgt_is_causal=True,
      src_key_padding_mask=source == PAD,
      memory_key_padding_mask=source == PAD,
    )
    logits = out @ model.embed.weight.T
    loss = torch.nn.functional.cross_entropy(
      logits.reshape(-1, c.vocab_size), target.reshape(-1), ignore_index=PAD, label_smoothing=0.1
    )
    loss.backward()
    optimizer.step()

  return None, run


def bench_training(options) -> None:
  """Prints tokens a second, source and target, padding not counted."""
  arguments = options.batch, options.length
  tokens = 2 * int((sentences(*arguments, options.length // 2) != PAD).sum())
  sides = {"ours": timing.Apart(our_training, *arguments), "torch": timing.Apart(their_training, *arguments)}
  seconds = timing.in_turns(sides, options.rounds)
  for side in sides.values():
    side.close()
  speed = {side: tokens / float(np.median(values)) for side, values in seconds.items()}
  print(
    f"transformer/base, training, {options.batch} x {options.length}, tokens per second: ours {speed['ours']:.0f}, "
    f"torch.nn.Transformer {speed['torch']:.0f}; ratio {timing.ratio(seconds['torch'], seconds['ours'])}",
    flush=True,
  )


def our_decoding(directory: str, batch: int, length: int):
  """The tokens found, and the decoding as a function of nothing."""
  import jax

  import zoo
  from zoo import decoding

  model, variables = zoo.load(directory)
  c, source = model.config, sentences(batch, length, length // 2)

  @jax.jit
  def translate(variables, source):
    parts = decoding.decode_step_of(model, variables, source, length)
    # No token ends a sequence, so that both sides decode equally many.
    return decoding.greedy(
      *parts, bos_token_id=c.bos_token_id, eos_token_id=-1, pad_token_id=c.pad_token_id, max_length=length
    ).sequences_BUT[:, 0]

  def run():
    return jax.block_until_ready(translate(variables, source))

  return np.asarray(run()), run


def their_decoding(directory: str, batch: int, length: int):
  """The same of Hugging Face."""
  import torch
  import transformers

  torch.set_num_threads(2)
  model = transformers.MarianMTModel.from_pretrained(directory).eval()
  model.generation_config.eos_token_id = None
  source = torch.tensor(sentences(batch, length, length // 2))

  def run():
    with torch.inference_mode():
      return model.generate(source, attention_mask=source != PAD, num_beams=1, do_sample=False, max_new_tokens=length)

  return run()[:, 1:].numpy(), run


def bench_decoding(options) -> None:
  """Prints for a large and a small model new tokens a second, and how many both sides agree on."""
  import torch
  import transformers

  import zoo
  from zoo.weights import tables

  for name in ("transformer/base", "transformer/nano"):
    torch.manual_seed(0)
    c = zoo.create(name, vocab_size=VOCAB).config
    special = dict(pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=EOS, forced_eos_token_id=None)
    fields = {key: getattr(c, field) for field, key in tables.of(name).HUGGINGFACE["fields"].items()}
    fields |= {b: fields[a] for a, b in tables.of(name).HUGGINGFACE["equal"].items()}
    config = transformers.MarianConfig(**fields | special)
    with tempfile.TemporaryDirectory() as directory:
      transformers.MarianMTModel(config).save_pretrained(directory)
      arguments = directory, options.sentences, options.length
      sides = {"ours": timing.Apart(our_decoding, *arguments), "theirs": timing.Apart(their_decoding, *arguments)}
      seconds = timing.in_turns(sides, options.rounds)
    same = (sides["ours"].about == sides["theirs"].about).mean()
    for side in sides.values():
      side.close()
    tokens = options.sentences * options.length
    speed = {side: tokens / float(np.median(values)) for side, values in seconds.items()}
    print(
      f"{name}, greedy, {options.sentences} sentences, {options.length} tokens each, tokens per second: "
      f"ours {speed['ours']:.0f}, Hugging Face {speed['theirs']:.0f}; "
      f"ratio {timing.ratio(seconds['theirs'], seconds['ours'])}; {same:.1%} of the tokens are the same",
      flush=True,
    )


def bench_packing(options) -> None:
  """Prints for each way to fill a batch the share of padding and the tokens a second without it."""
  import jax

  import zoo
  from train.data.text.translation import Translation

  model = zoo.create("transformer/nano", scan=True, remat="dots_saveable")
  sides, tokens, padding = {}, {}, {}
  for batching in ("pad", "bucket", "pack"):
    data = Translation("verses_en_es", source_length=96, target_length=96, batching=batching)
    stream = data.train_batches(64, seed=0)
    batches = [next(stream) for _ in range(options.steps)]
    real = [sum(int((batch[f"{side}_segment_ids"] > 0).sum()) for side in ("source", "target")) for batch in batches]
    tokens[batching] = sum(real)
    padding[batching] = 1 - sum(real) / sum(batch["source_ids"].size + batch["target_ids"].size for batch in batches)
    step, *holder, key = jax_step(model, batches[0])

    def run(step=step, holder=holder, key=key, batches=batches):
      for batch in batches:
        holder[0], metrics = step(holder[0], batch, key)
      jax.block_until_ready((holder[0], metrics))

    sides[batching] = run
  seconds = timing.in_turns(sides, options.rounds)
  per_token = {side: [s / tokens[side] for s in values] for side, values in seconds.items()}
  for side in sides:
    gain, speed = timing.ratio(per_token["pad"], per_token[side]), 1 / np.median(per_token[side])
    expected = (1 - padding[side]) / (1 - padding["pad"])
    print(
      f"transformer/nano, {side:6}  padding {padding[side]:.1%}, tokens per second {speed:.0f}, "
      f"over padded rows {gain}, were padding all that costs {expected:.2f}",
      flush=True,
    )


PARTS = dict(train=bench_training, decode=bench_decoding, packing=bench_packing)


def main() -> None:
  """Prints a line or several for each part."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--batch", type=int, default=16, help="rows in training")
  parser.add_argument("--sentences", type=int, default=32, help="decoded together")
  parser.add_argument("--length", type=int, default=32, help="of rows, and of what is decoded, in tokens")
  parser.add_argument("--steps", type=int, default=12, help="batches in a round of packing")
  options = parser.parse_args()
  timing.two_cores()
  for part in options.only:
    PARTS[part](options)


if __name__ == "__main__":
  main()
