"""Evaluations: exact means over a split, scores of labels, tags, masks, answers and translations, and a linear probe.

An evaluation is made by `NAME(run, **kwargs)` and called with the variables of the model; `run` is what it may
know of the training (`train.loop.Run`).
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from train import sharding
from train.data.text import question_answering as squad
from train.data.text.sequence_classification import told
from train.evaluation import text_metrics
from train.experiment import make_objective
from train.images import normalise
from train.inference import translate
from train.objectives.question_answering import span_logits
from train.objectives.semantic_segmentation import labelled_pixels, pixel_logits
from train.objectives.sequence_classification import read, scores_of_labels
from train.step import make_eval_step


class Evaluation(NamedTuple):
  """`function(variables) -> metrics`, to be called every so many steps; 0 = only after the last."""

  every_steps: int
  function: Callable[[dict], dict[str, float]]


def loss(run, *, every_steps: int = 0, split: str = "", batch_size: int = 0, objective=None) -> Evaluation:
  """The mean of an objective over every example of a split, each exactly once, on any number of devices.

  Args:
    run: the training.
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    objective: another than the training's, as in the config.

  Returns:
    an evaluation of the objective's "loss" and metrics, and "examples": what these are the mean of, which for texts is
    tokens.
  """
  objective = make_objective(ConfigDict(objective)) if objective else run.objective
  step = run.parallel.compile_eval(make_eval_step(objective, run.model, axis=run.parallel.axis))

  def evaluate(variables) -> dict[str, float]:
    sums: dict[str, float] = {}
    for batch in device_batches(run, split, batch_size or run.batch_size):
      for name, value in run.parallel.host(step(variables, batch)).items():
        sums[name] = sums.get(name, 0.0) + float(value)
    weight = sums.pop("weight")
    return {name: value / weight for name, value in sums.items()} | {"examples": weight}

  return Evaluation(every_steps, evaluate)


def linear_probe(
  run,
  *,
  every_steps: int = 0,
  train_split: str = "",
  split: str = "",
  batch_size: int = 0,
  l2: float = 1e-3,
  iterations: int = 200,
  compare_untrained: bool = False,
) -> Evaluation:
  """Multinomial logistic regression on frozen features (as in Alain & Bengio 2017; He et al. 2022, 4).

  Features are computed once, without augmentation, and standardised with the training split's statistics; the
  convex problem is solved by L-BFGS from zero, so the result does not depend on a learning rate.

  Args:
    run: the training.
    every_steps: steps between two probes; 0 for only the last.
    train_split, split: of the data, to fit and to score; the run's own if empty.
    batch_size: to compute features; the training's if 0.
    l2: weight of the squared norm of the weights.
    iterations: of L-BFGS, at most.
    compare_untrained: also probe the same encoder as it was initialised, as "untrained_accuracy".

  Returns:
    an evaluation of "accuracy" on `split` and "train_accuracy" on the training split.
  """
  family = inspect.getmodule(type(run.model))

  def features(variables, batch):
    image_BYXC = normalise(batch["image"], run.objective.mean, run.objective.std)
    return family.features(run.model, variables, image_BYXC), batch["label"]

  look = on_batches(run, features)

  def compute(variables, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = look(variables, name, batch_size)
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))

  def probe(variables) -> dict[str, float]:
    train, test = compute(variables, train_split or run.data.train_split), compute(variables, split)
    score, train_score = logistic_regression(*train, *test, run.data.num_classes, l2, iterations)
    return {"accuracy": score, "train_accuracy": train_score}

  def evaluate(variables) -> dict[str, float]:
    result = probe(variables)
    if compare_untrained:
      # From the seed once more, so that a resumed run needs nothing of its beginning.
      result["untrained_accuracy"] = probe(run.parallel.init(run.make_variables))["accuracy"]
      result["gain"] = result["accuracy"] - result["untrained_accuracy"]
    return result

  return Evaluation(every_steps, evaluate)


def logistic_regression(
  train_ND, train_label_N, test_MD, test_label_M, num_classes: int, l2: float, iterations: int
) -> tuple[float, float]:
  """Fits a softmax classifier to standardised features.

  Returns:
    accuracy on the test and on the training examples, 0 to 1
  """
  mean, std = train_ND.mean(0), train_ND.std(0) + 1e-6
  train_ND, test_MD = (train_ND - mean) / std, (test_MD - mean) / std
  kernel, bias = fit_softmax(train_ND, train_label_N, num_classes, l2, iterations)
  scores = []
  for x, label in ((test_MD, test_label_M), (train_ND, train_label_N)):
    scores.append(float(((x @ kernel + bias).argmax(1) == label).mean()))
  return tuple(scores)


@jax.jit
@jax.value_and_grad
def softmax_loss(flat, x_ND, label_N, l2):
  """The mean cross-entropy plus `l2` times the squared norm of the kernel, and its gradient.

  `flat` [(D + 1) V] holds the kernel [D, V] and, as its last row, the bias.
  """
  weights = flat.reshape(x_ND.shape[1] + 1, -1)
  with jax.default_matmul_precision("highest"):  # a TPU's default, bf16, is too coarse for the line search
    logits = x_ND @ weights[:-1] + weights[-1]
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, label_N).mean()
  return loss + l2 * jnp.square(weights[:-1]).sum()


def fit_softmax(x_ND, label_N, num_classes: int, l2: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
  """Minimises `softmax_loss` of features [N, D] and their labels [N], by at most so many iterations of L-BFGS.

  SciPy's takes hardly more than one evaluation an iteration; one within JAX takes longer to compile than this to run.

  Returns:
    the kernel [D, V] and the bias [V], of `num_classes` V
  """
  from scipy import optimize  # which takes half a second

  x_ND, label_N = jax.device_put((x_ND, label_N))

  def objective(flat):
    loss, gradient = jax.device_get(softmax_loss(flat.astype(np.float32), x_ND, label_N, l2))
    return float(loss), gradient.astype(np.float64)

  start = np.zeros((x_ND.shape[1] + 1) * num_classes)
  found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=dict(maxiter=iterations))
  weights = found.x.astype(np.float32).reshape(-1, num_classes)
  return weights[:-1], weights[-1]


def device_batches(run, split: str, batch_size: int, limit: int | None = None) -> Iterator[dict]:
  """The batches of a split on the devices, every example once, padding marked by `valid`."""
  share = run.parallel.data_devices * jax.process_count()
  batch_size = -(-batch_size // share) * share
  batches = run.data.eval_batches(
    batch_size, split or None, process_index=jax.process_index(), process_count=jax.process_count(), limit=limit
  )
  # From the place in the batch to the place in the split: an example's masks must not depend on the batch size.
  batches = (batch | {"id": batch["id"] + n * batch_size} for n, batch in enumerate(batches))
  return sharding.prefetch(batches, run.parallel.put_batch)


def on_batches(run, function: Callable) -> Callable[[dict, str, int], Iterator[tuple[np.ndarray, ...]]]:
  """Makes a function of the variables, a split and a batch size from one of the variables and a batch.

  It gives what that returns, a tuple of arrays [B, ...], for the valid examples of each batch, on the host.
  """
  axis = run.parallel.axis

  def gathered(variables, batch):
    out = function(variables, batch), batch["valid"]
    return jax.lax.all_gather(out, axis, tiled=True) if axis else out

  gathered = run.parallel.compile_eval(gathered)

  def look(variables, split: str, batch_size: int) -> Iterator[tuple[np.ndarray, ...]]:
    for batch in device_batches(run, split, batch_size or run.batch_size):
      arrays, valid_B = run.parallel.host(gathered(variables, batch))
      yield tuple(array[valid_B] for array in arrays)

  return look


def _check_kind(run, name: str, evaluation: str) -> None:
  if run.config.data.name != name:
    raise ValueError(f"the evaluation {evaluation!r} is for data {name!r}; this is {run.config.data.name!r}")


def sequence_classification(
  run, *, every_steps: int = 0, split: str = "", batch_size: int = 0, metrics: tuple = ()
) -> Evaluation:
  """What the labels of sentences are worth (`train.evaluation.text_metrics`), by the metrics of the task where GLUE has
  it.

  Args:
    run: the training, of data "sequence_classification".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    metrics: "accuracy", "f1" and "matthews_correlation" of classes and choices, "pearson" and "spearmanr" of numbers;
      the data's own if empty.

  Returns:
    an evaluation of these, and of their mean "combined_score" where there are several; 0 to 1, or -1 to 1 for
    correlations.
  """
  _check_kind(run, "sequence_classification", "sequence_classification")
  names = tuple(metrics) or run.data.scores
  text_metrics.check_scores(names, run.data.number)

  def tell(variables, batch):
    output, _ = scores_of_labels(run.model, variables, batch)
    return (output if output.ndim == 1 else output.argmax(1)), batch["label"]

  look = on_batches(run, tell)

  def evaluate(variables) -> dict[str, float]:
    found_N, label_N = map(np.concatenate, zip(*look(variables, split, batch_size), strict=True))
    there_N = told(label_N)
    return text_metrics.score_labels(found_N[there_N], label_N[there_N], names)

  return Evaluation(every_steps, evaluate)


def token_classification(run, *, every_steps: int = 0, split: str = "", batch_size: int = 0) -> Evaluation:
  """Precision, recall and F1 of whole entities (CoNLL), 0 to 1, of tags in IOB1 or IOB2; and the accuracy of tags.

  Args:
    run: the training, of data "token_classification".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
  """
  _check_kind(run, "token_classification", "token_classification")

  def tell(variables, batch):
    (logits_BTV, _), _ = read(run.model, variables, batch)
    return logits_BTV[..., : run.data.num_classes].argmax(-1), batch["label"]

  look, names = on_batches(run, tell), run.data.class_names

  def evaluate(variables) -> dict[str, float]:
    wanted = [sentence.tags for sentence in run.data.sentences(split or run.data.eval_split)]
    rows = (row for batch in look(variables, split, batch_size) for row in zip(*batch, strict=True))
    found = [[names[tag] for tag in tags_T[label_T >= 0]] for tags_T, label_T in rows]
    # Words that were cut off are in no entity.
    found = [tags + ["O"] * (len(true) - len(tags)) for tags, true in zip(found, wanted, strict=True)]
    return text_metrics.score_entities(found, wanted)

  return Evaluation(every_steps, evaluate)


def semantic_segmentation(run, *, every_steps: int = 0, split: str = "", batch_size: int = 0) -> Evaluation:
  """How well the classes of pixels are told: "miou", the mean intersection over union, and pixel "accuracy".

  All are of one confusion matrix, summed over the split's pixels (`score_confusion`).

  Args:
    run: the training, of data "semantic_segmentation".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.

  Returns:
    an evaluation of these, 0 to 1, and of "iou/CLASS" for every class that occurs.
  """
  _check_kind(run, "semantic_segmentation", "semantic_segmentation")
  classes, axis = run.data.num_classes, run.parallel.axis

  def count(variables, batch):
    logits_BYXV, _ = pixel_logits(run.model, variables, batch["image"], run.objective.mean, run.objective.std)
    found_BYX = logits_BYXV[..., :classes].argmax(-1)
    cell_BYX = jnp.where(labelled_pixels(batch), batch["mask"].astype(jnp.int32) * classes + found_BYX, classes**2)
    # For each example by itself, so that only the counts have to cross devices.
    count_BV = jax.vmap(functools.partial(jnp.bincount, length=classes**2 + 1))(cell_BYX.reshape(len(cell_BYX), -1))
    counts = count_BV.sum(0)[:-1].reshape(classes, classes)
    return jax.lax.psum(counts, axis) if axis else counts

  count = run.parallel.compile_eval(count)

  def evaluate(variables) -> dict[str, float]:
    confusion_VV = np.zeros((classes, classes), np.int64)
    for batch in device_batches(run, split, batch_size or run.batch_size):
      confusion_VV += run.parallel.host(count(variables, batch))
    return score_confusion(confusion_VV, run.data.class_names)

  return Evaluation(every_steps, evaluate)


def score_confusion(confusion_VV: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """Scores of a confusion matrix: how many pixels of each class (rows) were taken for each (columns).

  The intersection over union of a class, also called the Jaccard index, is the share of the pixels that are of the
  class or were taken for it, that are both.

  Returns:
    "iou/NAME" of each class that occurs on either side, "miou", their mean, and "accuracy"; 0 to 1. NaN for no pixels.
  """
  both_V = np.diag(confusion_VV)
  union_V = confusion_VV.sum(0) + confusion_VV.sum(1) - both_V
  scores = {f"iou/{names[v]}": float(both_V[v] / union_V[v]) for v in np.flatnonzero(union_V)}
  mean = float(np.mean(list(scores.values()))) if scores else float("nan")
  return {"miou": mean, "accuracy": float(both_V.sum() / max(confusion_VV.sum(), 1)) if scores else mean} | scores


def question_answering(
  run,
  *,
  every_steps: int = 0,
  split: str = "",
  batch_size: int = 0,
  n_best_size: int = 20,
  max_answer_length: int = 30,
  null_score_diff_threshold: float = 0.0,
) -> Evaluation:
  """Exact match and F1 of answers, 0 to 100, as SQuAD's scripts count them
  (`train.evaluation.text_metrics.score_answers`).

  Where the split has questions without an answer, their scores and the best threshold are told too.

  Args:
    run: the training, of data "question_answering".
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: the training's if 0.
    n_best_size, max_answer_length: see `train.data.text.question_answering.choose`.
    null_score_diff_threshold: how much better no answer has to be than the best answer to be told.
  """
  _check_kind(run, "question_answering", "question_answering")
  look = on_batches(run, lambda variables, batch: (span_logits(run.model, variables, batch)[0],))

  def evaluate(variables) -> dict[str, float]:
    asked, (placed, offsets) = run.data.questions(split), run.data.windows(split)
    logits = (row for (batch,) in look(variables, split, batch_size) for row in batch)
    found = []
    # Windows of a question follow each other.
    for number, group in itertools.groupby(zip(placed, logits, strict=True), lambda pair: pair[0].question):
      own, rows = zip(*group, strict=True)
      context = asked[number].context
      found.append(squad.choose(rows, own, offsets[number], context, n_best_size, max_answer_length))
    wanted = [[text for text, _ in question.answers] for question in asked]
    null = None if all(wanted) else [answer.null for answer in found]
    return text_metrics.score_answers([answer.text for answer in found], wanted, null, null_score_diff_threshold)

  return Evaluation(every_steps, evaluate)


def translation(
  run,
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
    run: the training.
    every_steps: steps between two evaluations; 0 for only the last.
    split: of the data; the evaluation split if empty.
    batch_size: sentences decoded together; the training's if 0.
    limit: only the first so many; 0 for all.
    max_length: of a translation, in tokens; the data's if 0.
    beam_size: see `train.inference.translate.Translator`; 1 is greedy.
    length_penalty: exponent of the length penalty.

  Returns:
    an evaluation of "bleu" and "chrf", 0 to 100, "exact", the share of translations equal to the reference, and
    "sentences_per_second" of decoding, once it is compiled, if there is a second batch.
  """
  translator = translate.Translator(run, max_length or run.data.target_length, beam_size, length_penalty)

  def evaluate(variables) -> dict[str, float]:
    pairs = run.data.references(split or run.data.eval_split)[: limit or None]
    batches = device_batches(run, split, batch_size or run.batch_size, limit or None)
    sources, targets = zip(*pairs, strict=True)
    found, speed = translator(variables, batches, sources)
    return translate.score(found, targets) | ({"sentences_per_second": speed} if speed else {})

  return Evaluation(every_steps, evaluate)
