"""BERT's pretraining step against Hugging Face's, and what packing is worth.

    pip install -e '.[parity]'
    python tests/bench/bench_bert.py [--only step packing] [--model bert/base] [--batch 8] [--rounds 5]

step: rows of 128 tokens, the same words hidden on both sides; Hugging Face tells the words of all places, ours of the
hidden ones. packing: the bundled verses in their real lengths; ours several in a row, Hugging Face's one a row and
padding, tokens a second without padding. Both in float32 with dropout, forward, backward and AdamW, in turns, with two
threads, each side in a process of its own.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import timing

VOCAB, CLS, SEP, MASK, FIRST = 30522, 101, 102, 103, 1000


def batch_of(lengths: list[list[int]], length: int) -> dict[str, np.ndarray]:
  """A batch as `train.data.text.masked_lm` makes it, of sequences of these lengths, random words, a list a row."""
  draw = np.random.default_rng(0)
  token, segment, position, kind, word = np.zeros((5, len(lengths), length), np.int32)
  most = max(map(len, lengths))
  first, follows = np.zeros((len(lengths), most), np.int32), np.full((len(lengths), most), -1, np.int32)
  for i, sequences in enumerate(lengths):
    start = 0
    for k, n in enumerate(sequences):
      here = slice(start, start + n)
      token[i, here] = [CLS, *draw.integers(FIRST, VOCAB, n - 2), SEP]
      segment[i, here], position[i, here], kind[i, here] = k + 1, np.arange(n), np.arange(n) >= n // 2
      word[i, start + 1 : start + n - 1] = start + 1 + np.arange(n - 2)
      first[i, k], follows[i, k] = start, draw.integers(0, 2)
      start = here.stop
  ids = np.arange(len(lengths), dtype=np.int32)
  arrays = dict(
    input_ids=token,
    segment_ids=segment,
    position_ids=position,
    token_type_ids=kind,
    word_ids=word,
    cls_positions=first,
    next_sentence_label=follows,
  )
  return arrays | dict(valid=np.ones(len(lengths), bool), id=ids, example=ids)


def ours(name: str, lengths: list[list[int]], length: int, most: int):
  """Nothing to tell, and a compiled step as a function of nothing."""
  import jax

  import zoo
  from train import optim, rng
  from train.objectives import mlm_nsp
  from train.step import init_state, make_step

  model = zoo.create(name)
  data = batch_of(lengths, length)
  variables = jax.jit(model.init)(rng.streams(rng.root(0), "params"), data["input_ids"][:1])
  optimizer, _ = optim.make(variables["params"], 1000, model=model, learning_rate=1e-4, weight_decay=0.01)
  objective = mlm_nsp.Objective(max_predictions=most)
  holder, key = [init_state(variables, optimizer)], rng.root(0)
  step = jax.jit(make_step(objective, model, optimizer), donate_argnums=0).lower(*holder, data, key).compile()

  def run():
    holder[0], metrics = step(holder[0], data, key)
    jax.block_until_ready((holder[0], metrics))

  return None, run


def theirs(name: str, lengths: list[list[int]], length: int, most: int):
  """The same of PyTorch."""
  import torch
  import transformers

  import zoo

  torch.set_num_threads(2)
  c = zoo.create(name).config
  sizes = dict(
    hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.num_heads, intermediate_size=c.mlp_dim
  )
  model = transformers.BertForPreTraining(transformers.BertConfig(**sizes, vocab_size=c.vocab_size)).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  data = {key: torch.from_numpy(array) for key, array in batch_of(lengths, length).items()}
  hidden = torch.from_numpy(hidden_places(data["word_ids"].numpy(), most))
  labels = torch.where(hidden, data["input_ids"], -100).long()
  inputs = dict(
    input_ids=torch.where(hidden, MASK, data["input_ids"]).long(),
    token_type_ids=data["token_type_ids"].long(),
    attention_mask=(data["segment_ids"] > 0).long(),
    labels=labels,
    next_sentence_label=data["next_sentence_label"][:, 0].long(),
  )

  def run():
    optimizer.zero_grad()
    model(**inputs).loss.backward()
    optimizer.step()

  return None, run


def hidden_places(word: np.ndarray, most: int) -> np.ndarray:
  """[B, T] bool: 15 % of the words of each row, as many as ours hides."""
  draw, hidden = np.random.default_rng(1), np.zeros(word.shape, bool)
  for row, numbers in zip(hidden, word, strict=True):
    places = np.flatnonzero(numbers)
    row[draw.choice(places, min(most, max(round(0.15 * (len(places) + 2)), 1)), replace=False)] = True
  return hidden


def compare(what: str, unit: str, options, sides: dict[str, tuple[list[list[int]], int, int]]) -> None:
  """Prints a line: how much of the unit a second on either side, and their ratio."""
  made = {side: timing.Apart(make, options.model, *sides[side]) for side, make in (("ours", ours), ("theirs", theirs))}
  seconds = timing.in_turns(made, options.rounds)
  for side in made.values():
    side.close()
  counts = {side: len(rows) if unit == "rows" else sum(map(sum, rows)) for side, (rows, _, _) in sides.items()}
  per_unit = {side: [s / counts[side] for s in values] for side, values in seconds.items()}
  speed = {side: 1 / float(np.median(values)) for side, values in per_unit.items()}
  print(
    f"{options.model}, {what}, {unit} per second: ours {speed['ours']:.2f}, Hugging Face {speed['theirs']:.2f}; "
    f"ratio {timing.ratio(per_unit['theirs'], per_unit['ours'])}",
    flush=True,
  )


def bench_step(options) -> None:
  """Full rows."""
  sides = dict.fromkeys(("ours", "theirs"), ([[128]] * options.batch, 128, 20))
  compare(f"{options.batch} rows of 128 tokens", "rows", options, sides)


def bench_packing(options) -> None:
  """As many rows of 128 on both sides: ours full of verses, theirs with one each."""
  from train.data.text.seq2seq import pack
  from train.data.text.translation import Translation

  lengths = Translation("verses_en_es").corpus("test").source.lengths + 2  # [CLS] and [SEP], less </s>
  lengths = np.minimum(lengths - 1, 128)
  order, ends = pack(lengths, lengths, 128, 128)
  rows = [lengths[row].tolist() for row in np.split(order, ends[:-1])][: options.batch]
  single = [[n] for n in lengths[: options.batch].tolist()]
  share = [1 - sum(map(sum, some)) / (128 * len(some)) for some in (rows, single)]
  what = f"{options.batch} rows of real lengths, padding {share[0]:.1%} and {share[1]:.1%}"
  compare(what, "tokens", options, {"ours": (rows, 128, 32), "theirs": (single, 128, 20)})


PARTS = dict(step=bench_step, packing=bench_packing)


def main() -> None:
  """Prints a line for each part."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
  parser.add_argument("--model", default="bert/base")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  timing.two_cores()
  for part in options.only:
    PARTS[part](options)


if __name__ == "__main__":
  main()
