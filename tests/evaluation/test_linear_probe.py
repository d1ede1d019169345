"""The linear probe: its convex problem is solved, and scored on other examples."""

import numpy as np
import pytest

from train.evaluation.linear_probe import fit_softmax, logistic_regression


def examples(count, seed=0):
  """Noisy features, of which the first two separate three classes; each has its own scale and mean."""
  draw = np.random.default_rng(seed)
  label_N = draw.integers(3, size=count)
  x_ND = draw.normal(size=(count, 6))
  x_ND[:, :2] += 2.5 * np.array([[1, 0], [-1, 1], [-1, -1]])[label_N]
  return (x_ND * [1, 10, 100, 0.1, 1, 1] + 7).astype(np.float32), label_N


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_gradient_is_zero_at_the_minimum(l2):
  x_ND, label_N = examples(500)
  x_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
  kernel, bias = fit_softmax(x_ND, label_N, 3, l2, 200)
  x, w, b = (value.astype(np.float64) for value in (x_ND, kernel, bias))
  # In closed form: the inputs times the error of the probabilities, and the pull of the penalty.
  chances = np.exp(x @ w + b)
  error = (chances / chances.sum(1, keepdims=True) - np.eye(3)[label_N]) / len(x)
  assert abs(x.T @ error + 2 * l2 * w).max() < 1e-3 and abs(error.sum(0)).max() < 1e-3
  assert abs(w).max() > 0.05


def test_iterations_are_a_limit():
  x_ND, label_N = examples(500)
  one, more = (fit_softmax(x_ND / 100, label_N, 3, 1e-3, n)[0] for n in (1, 100))
  assert abs(one - more).max() > 0.1


def test_scores_do_not_depend_on_the_scale_of_a_feature():
  train, test = examples(900), examples(300, seed=1)
  score, train_score = logistic_regression(*train, *test, 3, 1e-3, 200)
  assert 0.9 < score < 1 and 0.9 < train_score < 1
  wrong = logistic_regression(*train, test[0], (test[1] + 1) % 3, 3, 1e-3, 200)
  assert wrong[0] < 0.1 and wrong[1] == train_score
