"""Translates texts with a trained model, and scores translations."""

import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
import sacrebleu

from train.data.text import tokenizers
from train.data.text.seq2seq import Seq2Seq
from train.experiment import Experiment
from zoo import decoding


class Translator:
  """The model of an experiment as a function from batches of source tokens to texts.

  Args:
    experiment: `train.experiment.Experiment`, of data with pairs of texts.
    max_length: of a translation, in tokens.
    beam_size: of the beam search (`zoo.decoding.beam_search`); 1 is greedy. Of a non-autoregressive model the number of
      lengths that are tried (`zoo.decoding.non_autoregressive`).
    length_penalty: exponent of the length penalty.

  Raises:
    ValueError: an argument out of range, or not for this model.
  """

  def __init__(self, experiment: Experiment, max_length: int, beam_size: int = 1, length_penalty: float = 0.6) -> None:
    self.experiment = experiment
    model, c, axis = experiment.model, experiment.model.config, experiment.parallel.axis
    autoregressive = not hasattr(model, "decode_lengths")
    decoding.check_length(model, max_length)
    vocab_size = c.vocab_size + getattr(c, "copy_slots", 0)
    decoding.check_beam(beam_size, 1, length_penalty, vocab_size if autoregressive else None)
    special = dict(
      bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id, max_length=max_length
    )

    def decode(variables, batch):
      source_ids = batch["source_ids"]
      if not autoregressive:
        decoded = decoding.non_autoregressive(model, variables, source_ids, max_length, beam_size)
      else:
        parts = decoding.decode_step_of(model, variables, source_ids, max_length)
        if beam_size > 1:
          decoded = decoding.beam_search(*parts, beam_size=beam_size, length_penalty=length_penalty, **special)
        else:
          decoded = decoding.greedy(*parts, **special)
      out = decoded.sequences_BUT[:, 0], batch["valid"]
      return jax.lax.all_gather(out, axis, tiled=True) if axis else out

    self._decode = experiment.parallel.compile_eval(decode)

  def __call__(self, variables: dict, batches: Iterable[dict], sources: Sequence[str]) -> tuple[list[str], float]:
    """Translates.

    Args:
      variables: of the model.
      batches: of source tokens, on the devices.
      sources: their texts, from which a model with copying takes unknown words.

    Returns:
      the translations in order; and the number decoded per second without the first batch, which compiles, or 0 if
      there is only one.
    """
    rows, seconds, timed = [], 0.0, 0
    for number, batch in enumerate(batches):
      begin = time.perf_counter()
      tokens, valid = self.experiment.parallel.host(self._decode(variables, batch))
      if number:
        seconds, timed = seconds + time.perf_counter() - begin, timed + int(valid.sum())
      rows += tokens[valid].tolist()
    return detokenise(self.experiment.data, rows, sources), timed / seconds if seconds else 0.0


def translate_lines(
  translator: Translator, variables: dict, texts: Sequence[str], *, batch_size: int = 32, strict: bool = True
) -> list[str]:
  """The translations of texts, in their order; texts of similar length are decoded together.

  Args:
    translator: of an experiment.
    variables: of its model.
    texts: to translate.
    batch_size: rows in a batch; rounded up to a multiple of the number of devices.
    strict: raise an error if a text cannot be translated; else its translation is empty.

  Raises:
    ValueError: texts that are empty or too long, all with their number, from 1.
  """
  data = translator.experiment.data
  encoded, _ = data.encode(texts)
  faults = {i: f"line {i + 1} is empty" for i, text in enumerate(texts) if not text.strip()}
  faults |= {
    i: f"line {i + 1} has {len(ids)} tokens; at most {data.source_length}"
    for i, ids in enumerate(encoded)
    if len(ids) > data.source_length
  }
  if faults and strict:
    raise ValueError("\n".join(faults[i] for i in sorted(faults)))
  order = sorted((i for i in range(len(texts)) if i not in faults), key=lambda i: len(encoded[i]))
  batches = _batches(translator.experiment, [encoded[i] for i in order], batch_size)
  decoded, _ = translator(variables, batches, [texts[i] for i in order])
  translations = dict(zip(order, decoded, strict=True))
  return [translations.get(i, "") for i in range(len(texts))]


def _batches(experiment: Experiment, sources: Sequence[Sequence[int]], batch_size: int) -> Iterator[dict]:
  """Batches of sources on the devices, one a row, in order; the rows that fill up the last are not valid."""
  devices = experiment.parallel.data_devices
  size = -(-max(min(batch_size, len(sources)), 1) // devices) * devices
  # At most four lengths, each of which is compiled.
  limit = experiment.data.source_length
  quarter = -(-limit // 4)
  for first in range(0, len(sources), size):
    rows = sources[first : first + size]
    length = min(-(-max(map(len, rows)) // quarter) * quarter, limit)
    source_ids = np.full((size, length), experiment.model.config.pad_token_id, np.int32)
    for padded, row in zip(source_ids, rows, strict=False):
      padded[: len(row)] = row
    yield experiment.parallel.put_batch(dict(source_ids=source_ids, valid=np.arange(size) < len(rows)))


def intermediates(
  experiment: Experiment, variables: dict, source: str, target: str
) -> tuple[dict, list[str], list[str]]:
  """The model's aux for a text and its translation, and the tokens of target and source."""
  data, c = experiment.data, experiment.model.config
  source_ids, unknown = data.encode([source])
  target_ids, _ = data.encode([target], unknown)
  inputs = np.array(source_ids, np.int32)
  targets = np.array(target_ids, np.int32)[:, : c.max_length]  # a translation that reached this length has no end token
  decoder_inputs = np.concatenate([[[c.bos_token_id]], targets[:, :-1]], 1).astype(np.int32)
  _, aux = jax.jit(experiment.model.apply)(variables, inputs, decoder_inputs)

  def names(ids: list[int]) -> list[str]:
    tokens = [
      data.tokenizer.decode([i], skip_special_tokens=False) if i < data.vocab_size else unknown[0][i - data.vocab_size]
      for i in ids
    ]
    return [token if token.strip() else "\N{OPEN BOX}" for token in tokens]

  return aux, names(targets[0].tolist()), names(source_ids[0])


def align(experiment: Experiment, variables: dict, source: str, target: str) -> tuple[np.ndarray, list[str], list[str]]:
  """The attention of each target token of a translation to the source tokens.

  Returns:
    the decoder's cross-attention [target, source] (the last layer's, the mean over heads), and the tokens of target and
    source.

  Raises:
    ValueError: the model has no attention.
  """
  aux, target_tokens, source_tokens = intermediates(experiment, variables, source, target)
  if "decoder/alignment" not in aux:
    raise ValueError(f"{experiment.config.model.name} has no attention, so there is no alignment to draw")
  # A model that predicts all targets at once has more positions than this one needs.
  return np.asarray(aux["decoder/alignment"][0])[: len(target_tokens)], target_tokens, source_tokens


def detokenise(data: Seq2Seq, rows: Sequence[list[int]], sources: Sequence[str]) -> list[str]:
  """Rows of tokens, each up to </s>, to texts; `sources` are the texts they translate."""
  _, unknown = data.encode(sources)
  ended = [row[: row.index(tokenizers.EOS)] if tokenizers.EOS in row else row for row in rows]
  return [tokenizers.decode(data.tokenizer, *row).strip() for row in zip(ended, unknown, strict=True)]


def score(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
  """BLEU and chrF of a corpus, 0 to 100, by sacrebleu (Post 2018); "exact", the share of exact matches, 0 to 1."""
  if len(translations) != len(references):
    raise ValueError(f"{len(translations)} translations and {len(references)} references; wanted as many")
  bleu, chrf = sacrebleu.corpus_bleu(translations, [references]), sacrebleu.corpus_chrf(translations, [references])
  exact = float(np.mean([ours == wanted for ours, wanted in zip(translations, references, strict=True)]))
  return {"bleu": bleu.score, "chrf": chrf.score, "exact": exact}
