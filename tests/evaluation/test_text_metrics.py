"""Scores equal their closed forms and those of published scripts."""

import numpy as np
import pytest
from support import raises

from train.evaluation import text_metrics


def test_scores_of_classes_are_their_closed_forms():
  found, label = np.array([1, 1, 0, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1, 0, 1])
  right, wrong, missed, rest = 3, 1, 1, 2
  scores = text_metrics.score_labels(found, label, ("accuracy", "f1", "matthews_correlation"))
  precision, recall = right / (right + wrong), right / (right + missed)
  matthews = (right * rest - wrong * missed) / np.sqrt(
    (right + wrong) * (right + missed) * (rest + wrong) * (rest + missed)
  )
  assert scores["accuracy"] == pytest.approx(5 / 7) and scores["matthews_correlation"] == pytest.approx(matthews)
  assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
  assert scores["combined_score"] == pytest.approx(np.mean([5 / 7, scores["f1"], matthews]))
  assert text_metrics.score_labels(found, label, ("accuracy",)) == {"accuracy": pytest.approx(5 / 7)}
  assert (
    text_metrics.matthews_correlation(label, label)
    == pytest.approx(1)
    == -text_metrics.matthews_correlation(1 - label, label)
  )
  assert (
    text_metrics.matthews_correlation(np.ones(7, int), label)
    == 0
    == text_metrics.f1(np.zeros(7, int), np.zeros(7, int))
  )


def test_scores_of_numbers_are_their_closed_forms():
  rng = np.random.default_rng(0)
  found, label = rng.normal(size=(2, 40))
  assert text_metrics.pearson(found, label) == pytest.approx(np.corrcoef(found, label)[0, 1])
  ranks = [np.argsort(np.argsort(numbers)) for numbers in (found, label)]
  assert text_metrics.spearmanr(found, label) == pytest.approx(np.corrcoef(*ranks)[0, 1])
  assert text_metrics.spearmanr(np.exp(label), label) == pytest.approx(1) and text_metrics.pearson(
    3 - label, label
  ) == pytest.approx(-1)
  assert text_metrics.pearson(np.ones(40), label) == 0 == text_metrics.spearmanr(np.ones(40), label)
  with raises(ValueError, "'spearmann'", "'spearmanr'"):
    text_metrics.check_scores(("spearmann",), True)


@pytest.mark.parametrize(
  ("tags", "wanted"),
  [
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # the same in IOB1
    ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # neighbours in IOB1
    ("I-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
    ("O O", []),
    ("", []),
    ("B-A-B I-A-B", [("A-B", 0, 1)]),
  ],
)
def test_entities_equal_conlleval(tags, wanted):
  assert text_metrics.entities(tags.split()) == set(wanted)


def test_an_entity_counts_only_as_a_whole():
  wanted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
  found = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "B-ORG"]]
  scores = text_metrics.score_entities(found, wanted)
  assert scores == dict(precision=2 / 4, recall=2 / 3, f1=4 / 7, accuracy=4 / 6)
  assert text_metrics.score_entities([["O"]], [["O"]])["f1"] == 0
  with raises(ValueError, "1 tags", "2 words"):
    text_metrics.score_entities([["O"]], [["O", "O"]])


def test_answers_are_compared_as_in_squad():
  assert text_metrics.normalise_answer("The  Cat's (an) hat,\tA.") == "cats hat"
  assert text_metrics.exact_match("the U.S.", "us") == 1 and text_metrics.exact_match("us", "use") == 0
  assert text_metrics.answer_f1("a big red dog", "the red cat") == pytest.approx(
    2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)
  )
  assert text_metrics.answer_f1("b b c", "b c c") == pytest.approx(2 / 3)  # a repeated word counts as often as in both
  assert text_metrics.answer_f1("the", "") == 1 and text_metrics.answer_f1("", "dog") == 0
  assert text_metrics.score_answers(["dog", "red cat"], [["cat", "a dog"], ["cat"]]) == {
    "exact": 50.0,
    "f1": pytest.approx(100 * (1 + 2 / 3) / 2),
  }


def test_unanswerable_questions_need_a_threshold():
  found, wanted = ["dog", "cat", "cow", "pig"], [["dog"], [], ["ox"], ["the", "a pig"]]
  null = [-3.0, -1.0, -2.0, 1.0]
  scores = text_metrics.score_answers(found, wanted, null)
  assert scores["exact"] == 25 and scores["HasAns_exact"] == pytest.approx(100 / 3) and scores["NoAns_exact"] == 0
  assert text_metrics.score_answers(found, wanted, null, 2.0)["exact"] == 50
  assert text_metrics.score_answers(found, wanted, null, -1.5)["exact"] == 50  # dog, and nothing for the second
  best = max(text_metrics.score_answers(found, wanted, null, t)["exact"] for t in (-4, -3, -2, -1, 1, 2))
  assert (scores["best_exact"], scores["best_exact_thresh"]) == (best, -3.0)


def test_the_best_threshold_is_optimal():
  rng = np.random.default_rng(0)
  for _ in range(30):
    wanted = [[["a x"], []][rng.integers(2)] for _ in range(12)]
    found, null = rng.choice(["a x", "x y", "z", ""], 12).tolist(), rng.normal(size=12).tolist()
    scores = text_metrics.score_answers(found, wanted, null)
    for name in ("exact", "f1"):
      every = [text_metrics.score_answers(found, wanted, null, t)[name] for t in (-9.0, *null)]
      assert scores[f"best_{name}"] == pytest.approx(max(every))
      again = text_metrics.score_answers(found, wanted, null, scores[f"best_{name}_thresh"])
      if scores[f"best_{name}_thresh"]:  # 0 where predicting nothing is best
        assert again[name] == pytest.approx(max(every))
