"""Metrics of labels, tags and answers, as GLUE, CoNLL and SQuAD define them."""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from zoo.errors import nearest

# ---- labels (GLUE)


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
  """The share of predictions equal to their label."""
  return float(np.mean(predicted == labels))


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
  """The harmonic mean of precision and recall of class 1; 0 if both are 0."""
  true_positives = np.sum((predicted == 1) & (labels == 1))
  return float(2 * true_positives / max(np.sum(predicted == 1) + np.sum(labels == 1), 1))


def matthews_correlation(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Correlation of two classifications, -1 to 1 (Matthews 1975; Gorodkin 2004, eq. 8 for more than two classes).

  0 if all predictions or all labels are one class.
  """
  classes = max(predicted.max(), labels.max()) + 1
  confusion = np.zeros((classes, classes))
  np.add.at(confusion, (labels, predicted), 1)
  of_label, of_predicted, count = confusion.sum(1), confusion.sum(0), len(labels)
  product = (count**2 - of_label @ of_label) * (count**2 - of_predicted @ of_predicted)
  return float((np.trace(confusion) * count - of_label @ of_predicted) / np.sqrt(product)) if product else 0.0


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
  def correlation(predicted: np.ndarray, labels: np.ndarray) -> float:
    import scipy.stats  # its import takes more than a second

    # Undefined for constant numbers.
    constant = np.ptp(predicted) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(getattr(scipy.stats, name)(predicted, labels).statistic)

  return correlation


pearson = _correlation("pearsonr")
spearmanr = _correlation("spearmanr")

# Metrics of classes or choices, and of numbers.
LABEL_SCORES = dict(accuracy=accuracy, f1=f1, matthews_correlation=matthews_correlation)
NUMBER_SCORES = dict(pearson=pearson, spearmanr=spearmanr)


def check_scores(names: Sequence[str], number: bool) -> None:
  """Raises ValueError for an unknown metric, or one that is not for these labels: classes, or numbers if `number`."""
  known = NUMBER_SCORES if number else LABEL_SCORES
  if unknown := [name for name in names if name not in known]:
    kind = "numbers" if number else "classes"
    raise ValueError(f"there is no score {unknown[0]!r} of {kind}{nearest(unknown[0], known)}")


def score_labels(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """Metrics by name, and the mean of several as "combined_score", as in GLUE (Wang et al. 2019)."""
  scores = {name: (LABEL_SCORES | NUMBER_SCORES)[name](predicted, labels) for name in names}
  return scores | ({"combined_score": float(np.mean([*scores.values()]))} if len(scores) > 1 else {})


# ---- tags (CoNLL)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """The kind, first and last word of each entity of a sentence, as the script of CoNLL-2000 finds them.

  An entity begins at B-KIND, and at I-KIND if none of that kind continues there. So IOB1, where B- only separates
  neighbours of one kind, and IOB2 (BIO), where every entity begins with it, give the same, and a sequence that is valid
  in neither is still evaluated.
  """
  found, kind, first = set(), "", 0
  for i, tag in enumerate([*tags, "O"]):
    prefix, _, current = tag.partition("-")
    if kind and (prefix != "I" or current != kind):
      found.add((kind, first, i - 1))
      kind = ""
    if prefix in ("B", "I") and not kind:
      kind, first = current, i
  return found


def score_entities(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
  """Precision, recall and F1 of whole entities (Tjong Kim Sang & De Meulder 2003), and the accuracy of tags.

  Args:
    predicted, wanted: the tags of each sentence.

  Raises:
    ValueError: two sentences of different lengths.
  """
  num_right = num_predicted = num_true = same_tags = num_tags = 0
  for tags, true_tags in zip(predicted, wanted, strict=True):
    if len(tags) != len(true_tags):
      raise ValueError(f"{len(tags)} tags for a sentence of {len(true_tags)} words")
    found, true = entities(tags), entities(true_tags)
    num_right, num_predicted, num_true = num_right + len(found & true), num_predicted + len(found), num_true + len(true)
    same_tags += sum(a == b for a, b in zip(tags, true_tags, strict=True))
    num_tags += len(true_tags)
  return {
    "precision": num_right / max(num_predicted, 1),
    "recall": num_right / max(num_true, 1),
    "f1": 2 * num_right / max(num_predicted + num_true, 1),
    "accuracy": same_tags / max(num_tags, 1),
  }


# ---- answers (SQuAD)


def normalise_answer(text: str) -> str:
  """Lower case, without punctuation, articles and repeated spaces, as SQuAD's script compares answers."""
  text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predicted: str, wanted: str) -> float:
  """1 if two answers are equal after normalisation, else 0 (Rajpurkar et al. 2016, 6.1)."""
  return float(normalise_answer(predicted) == normalise_answer(wanted))


def answer_f1(predicted: str, wanted: str) -> float:
  """F1 of the words of two answers (Rajpurkar et al. 2016, 6.1); if one has no words, 1 if both have none, else 0."""
  words, true_words = normalise_answer(predicted).split(), normalise_answer(wanted).split()
  if not words or not true_words:
    return float(words == true_words)
  common = sum((collections.Counter(words) & collections.Counter(true_words)).values())
  return 2 * common / (len(words) + len(true_words))


def score_answers(
  predicted: Sequence[str],
  wanted: Sequence[Sequence[str]],
  null: Sequence[float] | None = None,
  threshold: float = 0.0,
) -> dict[str, float]:
  """Exact match and F1, 0 to 100, each with the best-matching right answer, as in SQuAD's scripts.

  Args:
    predicted: the best answer to each question, regardless of whether it is answerable.
    wanted: the right answers to each question; none if it is unanswerable.
    null: by how much the score of no answer exceeds that of the best answer, for each question; None if all questions
      are answerable (SQuAD 1.1).
    threshold: of `null`, above which the predicted answer is "".

  Returns:
    "exact" and "f1"; and with `null`, under the names of SQuAD's script, those of answerable and unanswerable
    questions, "HasAns_exact", "NoAns_exact", ..., and the best that any threshold gives, with that threshold:
    "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh".
  """
  # An answer of only articles and punctuation counts as none (`evaluate-v2.0.py`).
  right = [[answer for answer in answers if normalise_answer(answer)] or [""] for answers in wanted]
  if null is None:
    right = [list(answers) for answers in wanted]
  pairs = list(zip(predicted, right, strict=True))
  scores = {
    "exact": np.array([max(exact_match(answer, other) for other in answers) for answer, answers in pairs]),
    "f1": np.array([max(answer_f1(answer, other) for other in answers) for answer, answers in pairs]),
  }
  if null is None:
    return {name: 100 * float(score.mean()) for name, score in scores.items()}
  margin, unanswerable = np.asarray(null), np.array([answers == [""] for answers in right])
  result = {}
  for name, score in scores.items():
    at_threshold = np.where(margin > threshold, unanswerable, score)
    result[name] = 100 * float(at_threshold.mean())
    for group, members in (("HasAns", ~unanswerable), ("NoAns", unanswerable)):
      if members.any():
        result[f"{group}_{name}"] = 100 * float(at_threshold[members].mean())
    best, where = best_threshold(score, unanswerable, margin, [answer == "" for answer in predicted])
    result |= {f"best_{name}": 100 * best, f"best_{name}_thresh": where}
  return result


def best_threshold(
  score: np.ndarray, unanswerable: np.ndarray, null: np.ndarray, empty: Sequence[bool]
) -> tuple[float, float]:
  """The best mean score over all thresholds of `null`, and its threshold (`evaluate-v2.0.py`, find_best_thresh).

  It starts with no answer to any question; questions then get their answers in the order of increasing `null`.
  """
  order = np.argsort(null, kind="stable")
  # An answer gains its score; where there is none to find, it loses the point of an empty prediction.
  gain = np.where(unanswerable, np.where(empty, 0, -1), score)[order]
  total = unanswerable.sum() + np.concatenate([[0], np.cumsum(gain)])
  best = int(total.argmax())
  return float(total[best] / len(score)), float(null[order[best - 1]]) if best else 0.0
