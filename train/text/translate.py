"""Text to text with a trained model: decoding in batches, and what the translations are worth."""

import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np
import sacrebleu

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

  def __call__(self, variables: dict, batches: Iterable[dict]) -> tuple[list[str], float]:
    """The texts, in order, and how many a second were decoded, without the first batch, which compiles."""
    texts, seconds, counted = [], 0.0, 0
    for number, batch in enumerate(batches):
      begin = time.perf_counter()
      token_BT, valid_B = self.run.parallel.host(self._translate(variables, batch))
      if number:
        seconds, counted = seconds + time.perf_counter() - begin, counted + int(valid_B.sum())
      texts += detokenise(self.run.data.tokenizer, token_BT[valid_B], self.run.model.config.eos)
    return texts, counted / seconds if seconds else float("nan")


def detokenise(tokenizer, token_BT: np.ndarray, eos: int) -> list[str]:
  """Texts of rows of tokens, each up to `eos`."""
  rows = [row[: row.index(eos)] if eos in row else row for row in token_BT.tolist()]
  return [text.strip() for text in tokenizer.decode_batch(rows)]


def score(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
  """BLEU and chrF of a corpus, 0 to 100, as sacrebleu counts them (Post 2018): comparable between systems."""
  if len(found) != len(wanted):
    raise ValueError(f"{len(found)} translations and {len(wanted)} references; wanted as many")
  bleu, chrf = sacrebleu.corpus_bleu(found, [wanted]), sacrebleu.corpus_chrf(found, [wanted])
  return {"bleu": bleu.score, "chrf": chrf.score}
