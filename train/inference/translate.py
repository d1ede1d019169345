"""Text to text with a trained model: decoding in batches, and what the translations are worth."""

import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
import sacrebleu

from train.data.text import tokenizers as tokenizers
from zoo import decoding


class Translator:
  """A run's model as a function from batches of source tokens to texts.

  Args:
    run: `train.loop.Run`, of data that has a `tokenizer`.
    max_length: of a translation, in tokens.
    beam_size: sequences followed at once (`zoo.decoding.beam_search`); 1 is greedy. Of a non-autoregressive model how
      many lengths are tried (`zoo.decoding.non_autoregressive`).
    length_penalty: exponent of the length penalty.

  Raises:
    ValueError: an argument that makes no sense, or not for this model.
  """

  def __init__(self, run, max_length: int, beam_size: int = 1, length_penalty: float = 0.6):
    self.run = run
    c, axis = run.model.config, run.parallel.axis
    decoding.check_length(run.model, max_length)
    decoding.check_beam(
      beam_size,
      1,
      length_penalty,
      None if hasattr(run.model, "decode_lengths") else c.vocab_size + getattr(c, "copy_slots", 0),
    )

    special = dict(
      bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id, max_length=max_length
    )

    def translate(variables, batch):
      if hasattr(run.model, "decode_lengths"):
        decoded = decoding.non_autoregressive(run.model, variables, batch["source_ids"], max_length, beam_size)
      else:
        parts = decoding.decode_step_of(run.model, variables, batch["source_ids"], max_length)
        if beam_size > 1:
          decoded = decoding.beam_search(*parts, beam_size=beam_size, length_penalty=length_penalty, **special)
        else:
          decoded = decoding.greedy(*parts, **special)
      out = decoded.sequences_BNT[:, 0], batch["valid"]
      return jax.lax.all_gather(out, axis, tiled=True) if axis else out

    self._translate = run.parallel.compile_eval(translate)

  def __call__(self, variables: dict, batches: Iterable[dict], sources: Sequence[str]) -> tuple[list[str], float]:
    """Translates.

    Args:
      variables: of the model.
      batches: of tokens, on the devices.
      sources: the texts of them, of which unknown words may be copied.

    Returns:
      the texts, in order, and how many a second were decoded, without the first batch, which compiles; 0 if there
      was no other.
    """
    rows, seconds, counted = [], 0.0, 0
    for number, batch in enumerate(batches):
      begin = time.perf_counter()
      token_BT, valid_B = self.run.parallel.host(self._translate(variables, batch))
      if number:
        seconds, counted = seconds + time.perf_counter() - begin, counted + int(valid_B.sum())
      rows += token_BT[valid_B].tolist()
    return detokenise(self.run.data, rows, sources), counted / seconds if seconds else 0.0


def translate_lines(
  translator: Translator, variables: dict, texts: Sequence[str], *, batch_size: int = 32, strict: bool = True
) -> list[str]:
  """The translations of texts, in their order; texts of similar length are decoded together.

  Args:
    translator: of a run.
    variables: of its model.
    texts: to translate.
    batch_size: rows in a batch, or the next number that the devices can share.
    strict: raise where a text cannot be translated; else its translation is empty.

  Raises:
    ValueError: texts that are empty, or longer than the data's; all are named by their number, from 1.
  """
  run = translator.run
  limit = run.data.source_length
  encoded, _ = run.data.encode(texts)
  faults = {i: f"line {i + 1} is empty" for i, text in enumerate(texts) if not text.strip()}
  faults |= {
    i: f"line {i + 1} has {len(ids)} tokens; at most {limit}" for i, ids in enumerate(encoded) if len(ids) > limit
  }
  if faults and strict:
    raise ValueError("\n".join(faults[i] for i in sorted(faults)))
  order = sorted((i for i in range(len(texts)) if i not in faults), key=lambda i: len(encoded[i]))
  batches = _batches(run, [encoded[i] for i in order], batch_size)
  found, _ = translator(variables, batches, [texts[i] for i in order])
  translations = dict(zip(order, found, strict=True))
  return [translations.get(i, "") for i in range(len(texts))]


def _batches(run, sources: Sequence[Sequence[int]], batch_size: int) -> Iterator[dict]:
  """Batches of sources on the devices, one a row, in order; rows that are left over are not valid."""
  size = -(-max(min(batch_size, len(sources)), 1) // run.parallel.data_devices) * run.parallel.data_devices
  # Of four lengths at most: each is a program to compile.
  limit = run.data.source_length
  quarter = -(-limit // 4)
  for first in range(0, len(sources), size):
    ids = sources[first : first + size]
    length = min(-(-max(map(len, ids)) // quarter) * quarter, limit)
    source_BS = np.full((size, length), run.model.config.pad_token_id, np.int32)
    for row, tokens in zip(source_BS, ids, strict=False):
      row[: len(tokens)] = tokens
    yield run.parallel.put_batch(dict(source_ids=source_BS, valid=np.arange(size) < len(ids)))


def look(run, variables: dict, source: str, target: str) -> tuple[dict, list[str], list[str]]:
  """What a model computes on the way, given a text and its translation: aux, and the tokens of target and source."""
  tokenizer, c, known = run.data.tokenizer, run.model.config, run.data.vocab_size
  source_ids, unknown = run.data.encode([source])
  target_ids, _ = run.data.encode([target], unknown)
  source_BS, target_BT = np.array(source_ids, np.int32), np.array(target_ids, np.int32)
  target_BT = target_BT[:, : c.max_length]  # a target that was cut at that length has no room for its end
  inputs_BT = np.concatenate([[[c.bos_token_id]], target_BT[:, :-1]], 1).astype(np.int32)
  _, aux = jax.jit(run.model.apply)(variables, source_BS, inputs_BT)

  def words(ids: list[int]) -> list[str]:
    every = [tokenizer.decode([i], skip_special_tokens=False) if i < known else unknown[0][i - known] for i in ids]
    return [word if word.strip() else "\N{OPEN BOX}" for word in every]

  return aux, words(target_BT[0].tolist()), words(source_ids[0])


def align(run, variables: dict, source: str, target: str) -> tuple[np.ndarray, list[str], list[str]]:
  """Which source tokens each target token of a translation was read from.

  Returns:
    the decoder's attention [T, S] (the last layer's, the mean of all heads), and the tokens of target and source.

  Raises:
    ValueError: the model has no attention.
  """
  aux, target_words, source_words = look(run, variables, source, target)
  if "decoder/alignment" not in aux:
    raise ValueError(f"{run.config.model.name} has no attention, so there is no alignment to draw")
  # A model that cuts its targets has more places than this one needs.
  return np.asarray(aux["decoder/alignment"][0])[: len(target_words)], target_words, source_words


def detokenise(data, rows: Sequence[list[int]], sources: Sequence[str]) -> list[str]:
  """Texts of rows of tokens, each up to </s>; `sources` are what they translate."""
  _, unknown = data.encode(sources)
  ended = [row[: row.index(tokenizers.EOS)] if tokenizers.EOS in row else row for row in rows]
  return [tokenizers.decode(data.tokenizer, *row).strip() for row in zip(ended, unknown, strict=True)]


def score(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
  """BLEU and chrF of a corpus, 0 to 100, as sacrebleu counts them (Post 2018): comparable between systems.

  And "exact", the share of those that are as wanted to the letter, 0 to 1.
  """
  if len(found) != len(wanted):
    raise ValueError(f"{len(found)} translations and {len(wanted)} references; wanted as many")
  bleu, chrf = sacrebleu.corpus_bleu(found, [wanted]), sacrebleu.corpus_chrf(found, [wanted])
  exact = float(np.mean([f == w for f, w in zip(found, wanted, strict=True)]))
  return {"bleu": bleu.score, "chrf": chrf.score, "exact": exact}
