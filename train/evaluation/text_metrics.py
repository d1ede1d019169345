"""What labels, tags and answers are worth, as GLUE, CoNLL and SQuAD count it."""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from zoo.errors import nearest

# Labels.


def accuracy(found_N: np.ndarray, label_N: np.ndarray) -> float:
  """The share of classes that are as labelled."""
  return float(np.mean(found_N == label_N))


def f1(found_N: np.ndarray, label_N: np.ndarray) -> float:
  """The harmonic mean of precision and recall of class 1; 0 where both are."""
  right = np.sum((found_N == 1) & (label_N == 1))
  return float(2 * right / max(np.sum(found_N == 1) + np.sum(label_N == 1), 1))


def matthews_correlation(found_N: np.ndarray, label_N: np.ndarray) -> float:
  """Correlation of two classifications, -1 to 1 (Matthews 1975; Gorodkin 2004, eq. 8 for more than two classes).

  0 where all are put into one class.
  """
  classes = max(found_N.max(), label_N.max()) + 1
  table_VV = np.zeros((classes, classes))
  np.add.at(table_VV, (label_N, found_N), 1)
  label_V, found_V, count = table_VV.sum(1), table_VV.sum(0), len(label_N)
  spread = (count**2 - label_V @ label_V) * (count**2 - found_V @ found_V)
  return float((np.trace(table_VV) * count - label_V @ found_V) / np.sqrt(spread)) if spread else 0.0


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
  def correlation(found_N: np.ndarray, label_N: np.ndarray) -> float:
    import scipy.stats  # which takes more than a second

    # It is not defined for numbers that are all the same: they tell nothing.
    constant = np.ptp(found_N) == 0 or np.ptp(label_N) == 0
    return 0.0 if constant else float(getattr(scipy.stats, name)(found_N, label_N).statistic)

  return correlation


pearson = _correlation("pearsonr")
spearmanr = _correlation("spearmanr")

# Of classes or choices, and of numbers.
LABEL_SCORES = dict(accuracy=accuracy, f1=f1, matthews_correlation=matthews_correlation)
NUMBER_SCORES = dict(pearson=pearson, spearmanr=spearmanr)


def check_scores(names: Sequence[str], number: bool) -> None:
  """Raises ValueError where there is no such score, or not of these labels."""
  known = NUMBER_SCORES if number else LABEL_SCORES
  if unknown := [name for name in names if name not in known]:
    what = "numbers" if number else "classes"
    raise ValueError(f"there is no score {unknown[0]!r} of {what}{nearest(unknown[0], known)}")


def score_labels(found_N: np.ndarray, label_N: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """Scores by name, and the mean of several as "combined_score", as in GLUE (Wang et al. 2019)."""
  scores = {name: (LABEL_SCORES | NUMBER_SCORES)[name](found_N, label_N) for name in names}
  return scores | ({"combined_score": float(np.mean([*scores.values()]))} if len(scores) > 1 else {})


# Tags.


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """The kinds, first and last places of a sentence's entities, as the script of CoNLL-2000 finds them.

  One begins at B-kind, and at I-kind where none of that kind goes on. So IOB1, where B- only parts neighbours of one
  kind, and IOB2 (BIO), where every entity begins with it, say the same, and a tag that breaks the rules still counts.
  """
  found, kind, first = set(), "", 0
  for place, tag in enumerate([*tags, "O"]):
    prefix, _, now = tag.partition("-")
    if kind and (prefix != "I" or now != kind):
      found.add((kind, first, place - 1))
      kind = ""
    if prefix in ("B", "I") and not kind:
      kind, first = now, place
  return found


def score_entities(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
  """Precision, recall and F1 of whole entities (Tjong Kim Sang & De Meulder 2003), and the accuracy of tags."""
  right = told = there = same = words = 0
  for one, other in zip(found, wanted, strict=True):
    if len(one) != len(other):
      raise ValueError(f"{len(one)} tags for a sentence of {len(other)} words")
    mine, true = entities(one), entities(other)
    right, told, there = right + len(mine & true), told + len(mine), there + len(true)
    same, words = same + sum(a == b for a, b in zip(one, other, strict=True)), words + len(other)
  return {
    "precision": right / max(told, 1),
    "recall": right / max(there, 1),
    "f1": 2 * right / max(told + there, 1),
    "accuracy": same / max(words, 1),
  }


# Answers.


def normalise_answer(text: str) -> str:
  """Lower case, without punctuation, articles and more than single spaces, as SQuAD's script compares answers."""
  text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(found: str, wanted: str) -> float:
  """1 where two answers are the same (Rajpurkar et al. 2016, 6.1)."""
  return float(normalise_answer(found) == normalise_answer(wanted))


def answer_f1(found: str, wanted: str) -> float:
  """F1 of the words of two answers (Rajpurkar et al. 2016, 6.1); without words, whether both have none."""
  one, other = normalise_answer(found).split(), normalise_answer(wanted).split()
  if not one or not other:
    return float(one == other)
  same = sum((collections.Counter(one) & collections.Counter(other)).values())
  return 2 * same / (len(one) + len(other))


def score_answers(
  found: Sequence[str], wanted: Sequence[Sequence[str]], null: Sequence[float] | None = None, threshold: float = 0.0
) -> dict[str, float]:
  """Exact match and F1, 0 to 100, each of the right answer that is nearest, as SQuAD's scripts tell them.

  Args:
    found: an answer to each question, though there may be none.
    wanted: the right answers; none where there is no answer.
    null: how much more the model believes that there is no answer, a number for each question; None where every
      question has one (SQuAD 1.1).
    threshold: above it the answer is taken to be "".

  Returns:
    "exact" and "f1"; and with `null` those of questions with an answer and without, "HasAns_exact",
    "NoAns_exact", ..., and the best that any threshold gives, which is told too: "best_exact",
    "best_exact_thresh", "best_f1", "best_f1_thresh".
  """
  # An answer of nothing but articles and punctuation is none (`evaluate-v2.0.py`).
  right = [[answer for answer in answers if normalise_answer(answer)] or [""] for answers in wanted]
  if null is None:
    right = [list(answers) for answers in wanted]
  pairs = list(zip(found, right, strict=True))
  scores = {
    "exact": np.array([max(exact_match(one, other) for other in answers) for one, answers in pairs]),
    "f1": np.array([max(answer_f1(one, other) for other in answers) for one, answers in pairs]),
  }
  if null is None:
    return {name: 100 * float(score_N.mean()) for name, score_N in scores.items()}
  null_N, none_N = np.asarray(null), np.array([answers == [""] for answers in right])
  result = {}
  for name, score_N in scores.items():
    kept_N = np.where(null_N > threshold, none_N, score_N)
    result[name] = 100 * float(kept_N.mean())
    for what, here_N in (("HasAns", ~none_N), ("NoAns", none_N)):
      if here_N.any():
        result[f"{what}_{name}"] = 100 * float(kept_N[here_N].mean())
    best, where = best_threshold(score_N, none_N, null_N, [one == "" for one in found])
    result |= {f"best_{name}": 100 * best, f"best_{name}_thresh": where}
  return result


def best_threshold(
  score_N: np.ndarray, none_N: np.ndarray, null_N: np.ndarray, empty_N: Sequence[bool]
) -> tuple[float, float]:
  """The best mean score that a threshold of `null` gives, and that threshold (`evaluate-v2.0.py`, find_best_thresh).

  From no answer at all on, questions get their answers in the order of rising `null`.
  """
  order = np.argsort(null_N, kind="stable")
  # What an answer wins is its score, where there is one; else it loses what saying nothing had won.
  gain_N = np.where(none_N, np.where(empty_N, 0, -1), score_N)[order]
  total_N = none_N.sum() + np.concatenate([[0], np.cumsum(gain_N)])
  best = int(total_N.argmax())
  return float(total_N[best] / len(score_N)), float(null_N[order[best - 1]]) if best else 0.0
