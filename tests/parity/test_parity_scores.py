"""Scores are those that scikit-learn and seqeval compute of the same examples."""

import itertools

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics

from train.evaluation import text_metrics
from train.evaluation.image_metrics import score_confusion

pytestmark = pytest.mark.parity


def test_scores_of_classes_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  for classes in (2, 3, 5):
    label = rng.integers(classes, size=60)
    found = np.where(rng.random(60) < 0.6, label, rng.integers(classes, size=60))
    assert text_metrics.matthews_correlation(found, label) == pytest.approx(metrics.matthews_corrcoef(label, found))
    assert text_metrics.accuracy(found, label) == pytest.approx(metrics.accuracy_score(label, found))
    assert text_metrics.f1(found == 1, label == 1) == pytest.approx(metrics.f1_score(label == 1, found == 1))


def test_entities_are_those_of_seqeval():
  every = ("O", "B-A", "I-A", "B-B", "I-B")
  for tags in itertools.product(every, repeat=4):
    assert text_metrics.entities(tags) == set(get_entities(list(tags))), tags
  rng = np.random.default_rng(0)
  wanted, found = (rng.choice(every, (30, 8)).tolist() for _ in range(2))
  expected = text_metrics.score_entities(found, wanted)
  references = dict(precision=precision_score, recall=recall_score, f1=f1_score)
  for name, function in references.items():
    assert expected[name] == pytest.approx(function(wanted, found))


def test_scores_of_masks_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  wanted = rng.integers(0, 6, 3000)
  found = np.where(rng.random(3000) < 0.6, wanted, rng.integers(0, 8, 3000))  # of 9 classes, one that never occurs
  confusion = metrics.confusion_matrix(wanted, found, labels=range(9))
  ours = np.zeros((9, 9), int)
  np.add.at(ours, (wanted, found), 1)
  np.testing.assert_array_equal(ours, confusion)
  expected = score_confusion(confusion, [str(n) for n in range(9)])
  each = metrics.jaccard_score(wanted, found, average=None)
  assert expected.keys() == {"miou", "accuracy", *(f"iou/{n}" for n in range(8))}
  np.testing.assert_allclose([expected[f"iou/{n}"] for n in range(8)], each)
  np.testing.assert_allclose(expected["miou"], metrics.jaccard_score(wanted, found, average="macro"))
  np.testing.assert_allclose(expected["accuracy"], metrics.accuracy_score(wanted, found))
