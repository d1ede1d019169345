"""BLEU and chrF of translations."""

from train.evaluation.base import Evaluation, device_batches
from train.experiment import Experiment
from train.inference.translate import Translator, score


def translation(
  experiment: Experiment,
  *,
  every_steps: int = 0,
  split: str = "",
  batch_size: int = 0,
  limit: int = 0,
  max_length: int = 0,
  beam_size: int = 1,
  length_penalty: float = 0.6,
) -> Evaluation:
  """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of a split's translations, by sacrebleu on detokenised text.

  Args:
    experiment: `train.experiment.Experiment`, of data with translations.
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: sentences decoded together; the training's if 0.
    limit: number of sentences; 0 for all.
    max_length: of a translation, in tokens; the data's if 0.
    beam_size, length_penalty: see `train.inference.translate.Translator`; a beam of 1 is greedy.

  Returns:
    an evaluation of "bleu" and "chrf", 0 to 100, "exact", the share of translations equal to the reference, and, if
    there is a second batch, "sentences_per_second" of decoding after compilation.
  """
  data = experiment.data
  translator = Translator(experiment, max_length or data.target_length, beam_size, length_penalty)

  def evaluate(variables) -> dict[str, float]:
    pairs = data.references(split or data.eval_split)[: limit or None]
    batches = device_batches(experiment, split, batch_size or experiment.batch_size, limit or None)
    sources, targets = zip(*pairs, strict=True)
    translations, speed = translator(variables, batches, sources)
    return score(translations, targets) | ({"sentences_per_second": speed} if speed else {})

  return Evaluation(every_steps, evaluate)
