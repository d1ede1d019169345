"""The loss curve: what was logged, smoothed."""

import itertools
import math

import numpy as np
import pytest
from support import assert_plotted, raises

from train import metrics, plots


def test_smoothing_has_no_lag_and_passes_over_nan():
  line = np.arange(50.0)
  np.testing.assert_allclose(plots.smooth(line, 3)[20:-20], line[20:-20])
  np.testing.assert_array_equal(plots.smooth(line, 0), line)
  noise = np.random.default_rng(0).normal(size=400)
  assert plots.smooth(noise, 5).std() < 0.4 * noise.std()
  holed = np.where(line == 20, np.nan, 1.0)
  np.testing.assert_allclose(plots.smooth(holed, 3), holed)


def written(path, *, evals=True, rate=True, nan=False):
  with metrics.Log(path, 40, every_seconds=1e9) as log:
    for step in range(1, 41):
      extra = {"learning_rate": 1e-3 * step} if rate else {}
      log.train(step, {"loss": math.nan if nan and step > 30 else 2 / step, **extra})
      if evals and step % 20 == 0:
        log.eval(step, "test", {"loss": 3 / step, "accuracy": step / 50})
        log.note("half way")
  return path


def test_loss_curve_draws_what_was_logged(tmp_path):
  figure = plots.loss_curve(written(tmp_path), path=tmp_path / "deep" / "loss.png")
  assert_plotted(tmp_path / "deep" / "loss.png")
  loss, share, rate = figure.axes
  raw, smoothed, test = (line.get_xydata() for line in loss.lines)
  np.testing.assert_allclose(raw, [(s, 2 / s) for s in range(1, 41)])
  assert len(smoothed) == 40
  np.testing.assert_allclose(test, [(20, 3 / 20), (40, 3 / 40)])
  np.testing.assert_allclose(share.lines[0].get_xydata(), [(20, 40), (40, 80)])
  np.testing.assert_allclose(rate.lines[0].get_xydata()[:, 1], 1e-3 * np.arange(1, 41))
  assert [t.get_text() for t in loss.texts] == ["training", "test"]


@pytest.mark.parametrize("kwargs", [dict(evals=False), dict(rate=False, evals=False), dict(nan=True)])
def test_loss_curve_of_other_logs(tmp_path, kwargs):
  figure = plots.loss_curve(written(tmp_path, **kwargs) / "metrics.jsonl", path=tmp_path / "loss.png")
  assert_plotted(tmp_path / "loss.png")
  assert len(figure.axes) == 1 + kwargs.get("rate", True) + kwargs.get("evals", True)
  assert ("10 not finite" in " ".join(t.get_text() for t in figure.texts)) == kwargs.get("nan", False)


def test_labels_at_the_ends_of_lines_do_not_overlap(tmp_path):
  with metrics.Log(tmp_path, 10, every_seconds=1e9) as log:
    for step in (1, 10):
      log.train(step, {"loss": 1 / step})
      for name in "abcd":
        log.eval(step, name, {"loss": 1 / step})
  figure = plots.loss_curve(tmp_path)
  figure.canvas.draw()
  boxes = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.y0)
  assert len(boxes) == 5 and all(a.y1 <= b.y0 + 2 for a, b in itertools.pairwise(boxes))


def test_a_log_without_training_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "note": "x"}\n')
  with raises(ValueError, tmp_path):
    plots.loss_curve(tmp_path)
