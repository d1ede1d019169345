"""Text to text with a trained model: decoding in batches, and what the translations are worth."""

import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
import sacrebleu

from train.text import tokenizer as tokenizers
from zoo import decode


class Translator:
  """A run's model as a function from batches of source tokens to texts.

  Args:
    run: `train.loop.Run`, of data that has a `tokenizer`.
    max_length: of a translation, in tokens.
    beam: sequences followed at once (`zoo.decode.beam_search`); 1 is greedy.
    alpha: of the length penalty.
  """

  def __init__(self, run, max_length: int, beam: int = 1, alpha: float = 0.6):
    self.run = run
    c, axis = run.model.config, run.parallel.axis
    special = dict(bos=c.bos, eos=c.eos, pad=c.pad, max_length=max_length)

    def translate(variables, batch):
      parts = decode.stepper(run.model, variables, batch["source"], max_length)
      if beam > 1:
        decoded = decode.beam_search(*parts, beam=beam, alpha=alpha, **special)
      else:
        decoded = decode.greedy(*parts, **special)
      out = decoded.token_BNT[:, 0], batch["valid"]
      return jax.lax.all_gather(out, axis, tiled=True) if axis else out

    self._translate = run.parallel.compile_eval(translate)

  def __call__(self, variables: dict, batches: Iterable[dict], sources: Sequence[str]) -> tuple[list[str], float]:
    """Translates.

    Args:
      variables: of the model.
      batches: of tokens, on the devices.
      sources: the texts of them, of which unknown words may be copied.

    Returns:
      the texts, in order, and how many a second were decoded, without the first batch, which compiles.
    """
    rows, seconds, counted = [], 0.0, 0
    for number, batch in enumerate(batches):
      begin = time.perf_counter()
      token_BT, valid_B = self.run.parallel.host(self._translate(variables, batch))
      if number:
        seconds, counted = seconds + time.perf_counter() - begin, counted + int(valid_B.sum())
      rows += token_BT[valid_B].tolist()
    return detokenise(self.run.data, rows, sources), counted / seconds if seconds else float("nan")


def read_lines(run, texts: Sequence[str], batch_size: int = 32) -> Iterator[dict]:
  """Batches of sources on the devices, one text a row; rows that are left over are not valid.

  Args:
    run: `train.loop.Run`.
    texts: to translate.
    batch_size: rows in a batch, or the next number that the devices can share.

  Raises:
    ValueError: empty lines, or lines that are longer than the model's; all are named by their number, from 1.
  """
  limit = run.data.source_length
  encoded, _ = run.data.encode(texts)
  faults = [f"line {i} is empty" for i, text in enumerate(texts, 1) if not text.strip()]
  faults += [f"line {i} has {len(ids)} tokens; at most {limit}" for i, ids in enumerate(encoded, 1) if len(ids) > limit]
  if faults:
    raise ValueError("\n".join(faults))
  size = -(-min(batch_size, len(texts)) // run.parallel.data_devices) * run.parallel.data_devices
  for first in range(0, len(texts), size):
    ids = encoded[first : first + size]
    source_BS = np.full((size, limit), run.model.config.pad, np.int32)
    for row, tokens in zip(source_BS, ids, strict=False):
      row[: len(tokens)] = tokens
    yield run.parallel.put_batch(dict(source=source_BS, valid=np.arange(size) < len(ids)))


def align(run, variables: dict, source: str, target: str) -> tuple[np.ndarray, list[str], list[str]]:
  """Which source tokens each target token of a translation was read from.

  Returns:
    the decoder's attention [T, S] (the last layer's, the mean of all heads), and the tokens of target and source.

  Raises:
    ValueError: the model has no attention.
  """
  tokenizer, c = run.data.tokenizer, run.model.config
  source_ids, unknown = run.data.encode([source])
  target_ids, _ = run.data.encode([target], unknown)
  source_BS, target_BT = np.array(source_ids, np.int32), np.array(target_ids, np.int32)
  inputs_BT = np.concatenate([[[c.bos]], target_BT[:, :-1]], 1).astype(np.int32)
  _, aux = jax.jit(run.model.apply)(variables, source_BS, inputs_BT)
  if "decoder/alignment" not in aux:
    raise ValueError(f"{run.config.model.name} has no attention, so there is no alignment to draw")
  known = run.data.vocab_size

  def words(ids: list[int]) -> list[str]:
    return [tokenizer.decode([i], skip_special_tokens=False) if i < known else unknown[0][i - known] for i in ids]

  return np.asarray(aux["decoder/alignment"][0]), words(target_ids[0]), words(source_ids[0])


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
