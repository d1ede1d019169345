"""Kernel regression: points from a file, the Nadaraya-Watson formula, and the bandwidth that predicts best."""

import json

import jax
import matplotlib
import numpy as np
import pytest
from batches import assert_equal, concatenate, take
from support import raises

import zoo
from train import data, experiment, loop, plots
from train.config import defaults
from train.data.regression import bundled
from train.datasets import make_engel
from train.evaluation import registry as evaluations
from train.objectives.regression import Objective
from train.plots import registry
from zoo.models.kernel_regression import learned_bandwidth

# Around a curve, noisy, of varying density: 30 points, of which 24 train, a multiple of 8 devices.
RNG = np.random.default_rng(3)
X = np.sort(RNG.gamma(2.0, 50.0, 30))
Y = 100 * np.sin(X / 60) + RNG.normal(0, 20, 30)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "own.csv"
  path.write_text("day,level\n" + "".join(f"{x!r},{y!r}\n" for x, y in zip(X.tolist(), Y.tolist(), strict=True)))
  return str(path)


def nadaraya_watson(x, keys, values, width, seen):
  """Point by point, in float64."""
  result = []
  for i, here in enumerate(x):
    weights = [np.exp(-(((here - k) / width) ** 2) / 2) if seen[i][j] else 0.0 for j, k in enumerate(keys)]
    result.append(np.dot(weights, values) / np.sum(weights))
  return np.array(result)


def leave_one_out(x, y, width):
  return np.mean((nadaraya_watson(x, x, y, width, ~np.eye(len(x), dtype=bool)) - y) ** 2)


# ---- points


def test_the_bundled_points_are_engels_and_reproduced_by_their_script(tmp_path):
  table = data.make("regression", dataset="engel").table
  # As R's quantreg, which has the same set, sums it up.
  assert len(table.x) == 235 and table.names == make_engel.HEADING
  for column, wanted in ((table.x, (377.1, 884.0, 982.5, 4957.8)), (table.y, (242.3, 582.5, 624.2, 2032.7))):
    found = column.min(), np.median(column), column.mean(), column.max()
    np.testing.assert_allclose(found, wanted, atol=0.05)
  source = tmp_path / "statsmodels/datasets/engel/engel.csv"
  source.parent.mkdir(parents=True)
  ours = bundled()["engel"].read_text()
  source.write_text('"income","foodexp"\n' + ours.partition("\n")[2])
  assert make_engel.make(tmp_path, tmp_path).read_text() == ours


def test_splits_partition_the_points_by_the_seed(file):
  points = data.make("regression", dataset=file)
  train, test = points.examples("train"), points.examples("test")
  assert (len(train), len(test)) == (points.num_train, points.num_eval()) == (24, 6)
  assert sorted([*train, *test]) == list(range(30))
  np.testing.assert_array_equal(data.make("regression", dataset=file).examples("test"), test)
  assert (data.make("regression", dataset=file, split_seed=1).examples("test") != test).any()
  np.testing.assert_array_equal(points.split("test"), [X[test], Y[test]])
  assert points.table.names == ("day", "level")


def test_every_epoch_has_every_point_once_in_an_order_of_its_own(file):
  points = data.make("regression", dataset=file)
  stream = concatenate(take(points.train_batches(9, seed=1), 6))["y"]  # 9 does not divide 24
  wanted = np.sort(points.split("train")[1].astype(np.float32))
  np.testing.assert_array_equal(np.sort(stream[:24]), wanted)
  np.testing.assert_array_equal(np.sort(stream[24:48]), wanted)
  assert (stream[:24] != stream[24:48]).any()
  assert (take(points.train_batches(9, seed=2), 1)[0]["y"] != stream[:9]).any()


def test_any_number_of_processes_from_any_step_makes_the_same_batches(file):
  points = data.make("regression", dataset=file)
  whole = take(points.train_batches(8, seed=5), 5)
  np.testing.assert_array_equal(whole[0]["id"], np.arange(8))
  for first in (0, 4):  # the second one in the second epoch
    parts = [take(points.train_batches(8, 5, first, process, 4), 1)[0] for process in range(4)]
    assert_equal(concatenate(parts), whole[first])


@pytest.mark.parametrize("split, count", [("train", 24), ("test", 6)])
def test_evaluation_has_every_point_once_and_pads(file, split, count):
  points = data.make("regression", dataset=file)
  whole = concatenate(list(points.eval_batches(16, split)))
  assert whole["valid"].sum() == count and len(whole["valid"]) % 16 == 0
  np.testing.assert_array_equal(whole["y"][whole["valid"]], points.split(split)[1].astype(np.float32))
  halves = [concatenate(list(points.eval_batches(16, split, process, 2))) for process in (0, 1)]
  assert sum(half["valid"].sum() for half in halves) == count
  assert concatenate(list(points.eval_batches(4, split, limit=5)))["valid"].sum() == 5


def test_a_point_is_not_among_its_own_keys(file):
  points = data.make("regression", dataset=file)
  for batch in (take(points.train_batches(24, 0), 1)[0], next(points.eval_batches(24, "train"))):
    assert batch["attention_mask"].shape == (24, 24) and (batch["attention_mask"].sum(1) == 23).all()
    np.testing.assert_array_equal(batch["keys"][~batch["attention_mask"]], batch["x"])
    np.testing.assert_array_equal(batch["values"][~batch["attention_mask"]], batch["y"])
  test = next(points.eval_batches(6))
  assert test["attention_mask"].all() and test["keys"].shape == (6, 24)
  np.testing.assert_allclose(test["x"] + points.origin, points.split("test")[0], rtol=1e-5)
  shapes = data.kind("regression").shapes(dict(name="regression", dataset=file), None, 6)
  assert {k: (s.shape, s.dtype) for k, s in shapes.items()} == {k: (a.shape, a.dtype) for k, a in test.items()}


def test_large_numbers_stay_distinct(tmp_path):
  """Seconds since 1970, one after the other: float32 cannot represent them."""
  (tmp_path / "seconds.csv").write_text("".join(f"{1_700_000_000 + i},{i}\n" for i in range(10)))
  points = data.make("regression", dataset=str(tmp_path / "seconds.csv"))
  assert len(set(next(points.eval_batches(8, "train"))["x"].tolist())) == 8


@pytest.mark.parametrize("text", ["x;1,y\n", '\ufeff"a ""b""", y\n\n', ""])
def test_headings(tmp_path, text):
  path = tmp_path / f"{len(text)}.csv"
  path.write_text(text + "1,2\r\n\r\n 3 , -4e0\n5,6\n7,8\n9,10\n", encoding="utf-8")
  table = data.make("regression", dataset=str(path)).table
  assert table.x.tolist() == [1, 3, 5, 7, 9] and table.y.tolist() == [2, -4, 6, 8, 10]
  assert table.names == {"": ("x", "y"), "x;1,y\n": ("x;1", "y")}.get(text, ('a "b"', "y"))


def test_bad_lines_are_named_by_file_and_number(tmp_path):
  path = tmp_path / "bad.csv"
  path.write_text("x,y\n1,2\n\n3\n4,five\n6,nan\n7,8,9\nx,y\n10,11\n")
  with raises(ValueError, "x,y") as error:
    data.make("regression", dataset=str(path)).num_train  # noqa: B018
  wanted = [(4, "3"), (5, "4,five"), (6, "6,nan"), (7, "7,8,9"), (8, "x,y")]
  *lines, _ = str(error.value).splitlines()
  for line, (number, text) in zip(lines, wanted, strict=True):
    assert f"{path}, line {number}," in line and repr(text) in line
  path.write_text("only words\n" * 30)
  with raises(ValueError, "line 10", 20):
    data.make("regression", dataset=str(path)).num_train  # noqa: B018
  path.write_bytes(b"1,2\n\xff,3\n")
  with raises(ValueError, path, "utf-8"):
    data.make("regression", dataset=str(path)).num_train  # noqa: B018
  path.write_text("1,2\n3,4\n5,6\n")
  with raises(ValueError, path, 3, "data.test_share", 0.2):
    data.make("regression", dataset=str(path)).num_train  # noqa: B018


def test_invalid_data_splits_and_models_are_errors(file):
  for dataset, named in (("engle", ("'engle'", "'engel'")), ("no/such.csv", ("no/such.csv",))):
    with raises(ValueError, *named):
      data.make("regression", dataset=dataset).num_train  # noqa: B018
  with raises(ValueError, "test_share", 1.0, "0 < test_share < 1"):
    data.make("regression", dataset=file, test_share=1.0)
  points = data.make("regression", dataset=file)
  with raises(ValueError, "'tset'", "'test'"):
    points.eval_batches(8, "tset")
  with raises(ValueError, "batch_size", 25, 24):
    points.train_batches(25, 0)
  points.check_fit(zoo.create("kernel_regression/test").config, None)
  for name in ("vit/test", "transformer/test"):
    with raises(ValueError, "kernel_regression/learned"):
      points.check_fit(zoo.create(name).config, None)


# ---- model and objective


@pytest.mark.parametrize("variant, factor", [("average", None), ("gaussian", None), ("learned", 2.5)])
def test_the_model_equals_the_formula(variant, factor):
  model = zoo.create(f"kernel_regression/{variant}", bandwidth=40.0)
  variables = {"params": {"pool": {"inverse_width": factor}}} if factor else {}
  query, seen = np.array([[-3.0, 20.0, 77.0], [150.0, 90.0, 1e3]], np.float32), RNG.random((2, 3, 30)) < 0.7
  keys, values = (np.tile(column.astype(np.float32), (2, 1)) for column in (X, Y))
  y, aux = model.apply(variables, query, keys, values, seen)
  width = {"average": 1e9, "gaussian": 40.0, "learned": 16.0}[variant]
  assert learned_bandwidth(model.config, variables) == (np.inf if variant == "average" else width)
  for b in range(2):
    near = np.abs(query[b, :, None] - X).min(1) < 10 * width  # farther away float64's weights are all 0
    wanted = nadaraya_watson(query[b, near], X, Y, width, seen[b, near])
    np.testing.assert_allclose(y[b, near], wanted, rtol=1e-3, atol=1e-2)
  assert not np.asarray(aux["weights"])[~seen].any()
  np.testing.assert_allclose(aux["weights"].sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.einsum("BTS,BS->BT", aux["weights"], values), y, rtol=1e-4, atol=1e-3)


def test_limits_of_the_bandwidth_are_the_nearest_point_and_the_average():
  x, keys, values = (column.astype(np.float32)[None] for column in (X[1::2] + 1, X[::2], Y[::2]))
  narrow, wide = (
    zoo.create("kernel_regression/gaussian", bandwidth=w).apply({}, x, keys, values)[0] for w in (0.01, 1e5)
  )
  nearest = np.abs(x[0, :, None] - keys[0]).argmin(1)
  np.testing.assert_allclose(narrow[0], values[0, nearest], rtol=1e-5)
  np.testing.assert_allclose(wide[0], values.mean(), rtol=1e-4)


def test_invalid_fields_are_errors():
  for overrides, named in (
    (dict(kind="gausian"), ("kind", "'gausian'", "'gaussian'")),
    (dict(bandwidth=0.0), ("bandwidth", 0.0)),
    (dict(kind="average"), ("learn_bandwidth", "kind='gaussian'")),
    (dict(dtype="float16"), ("dtype", "'float16'")),
  ):
    with raises(ValueError, *named):
      zoo.create("kernel_regression/test", **overrides)


def test_the_objective_sums_over_valid_points(file):
  points, model = data.make("regression", dataset=file), zoo.create("kernel_regression/gaussian", bandwidth=30.0)
  batch = next(points.eval_batches(40, "train"))
  loss = Objective()(model, {}, batch)
  x, y = points.split("train")
  assert loss.weight == 24
  np.testing.assert_allclose(loss.total / 24, leave_one_out(x, y, 30.0), rtol=1e-4)
  errors = nadaraya_watson(x, x, y, 30.0, ~np.eye(24, dtype=bool)) - y
  np.testing.assert_allclose(loss.metrics["absolute_error"] / 24, np.abs(errors).mean(), rtol=1e-4)
  halves = [Objective()(model, {}, jax.tree.map(lambda a: a[h::2], batch), jax.random.key(0)) for h in (0, 1)]  # noqa: B023
  np.testing.assert_allclose(sum(half.total for half in halves), loss.total, rtol=1e-5)


# ---- runs


def config(file, variant, **model):
  made = defaults()
  made.model = dict(name=f"kernel_regression/{variant}", **model)
  made.data = dict(name="regression", dataset=file)
  made.objective = dict(name="regression")
  made.batch_size = 24
  made.steps = 150 if variant == "learned" else 2
  made.optimizer = dict(name="adamw", learning_rate=0.1, b2=0.95)
  made.evals = dict(leave_one_out=dict(name="loss", split="train"), test=dict(name="loss"))
  made.plots = ("regression_curve", "attention_heat_map", "kernel_widths")
  return made


def test_the_learned_bandwidth_minimises_the_leave_one_out_error(file, tmp_path):
  result = loop.train(config(file, "learned", bandwidth=100.0), tmp_path / "learned")
  points = data.make("regression", dataset=file)
  x, y = points.split("train")
  widths = np.geomspace(3, 300, 400)
  errors = [leave_one_out(x, y, width) for width in widths]
  best = widths[np.argmin(errors)]
  assert 5 < best < 200  # neither the nearest point nor the average
  model, variables = zoo.load(str(tmp_path / "learned"))
  assert learned_bandwidth(model.config, variables) == pytest.approx(best, rel=0.02)
  assert result["leave_one_out"]["loss"] == pytest.approx(min(errors), rel=1e-3)
  # Of the mean of all others a point is n / (n - 1) times as far away as of the mean of all.
  average = y.var() * (24 / 23) ** 2
  assert result["leave_one_out"]["loss"] < 0.5 * average
  test_x, test_y = points.split("test")
  found = nadaraya_watson(test_x, x, y, best, np.ones((6, 24), bool))
  assert result["test"]["loss"] == pytest.approx(np.mean((found - test_y) ** 2), rel=0.05)
  assert result["test"]["loss"] < 0.5 * np.mean((y.mean() - test_y) ** 2)
  run, variables, _ = experiment.open_run(str(tmp_path / "learned"))
  np.testing.assert_allclose(registry.predict(run, variables, test_x)[0], found, rtol=0.05, atol=1)
  np.testing.assert_allclose(registry.width_errors(points, "train", widths[::40]) ** 2, errors[::40], rtol=1e-3)
  for name in result["plots"].values():
    assert matplotlib.image.imread(name).std() > 0.05


def test_a_model_without_parameters_can_be_run(file, tmp_path):
  result = loop.train(config(file, "average"), tmp_path / "average")
  _, y = data.make("regression", dataset=file).split("train")
  assert result["leave_one_out"]["loss"] == pytest.approx(y.var() * (24 / 23) ** 2, rel=1e-4)
  run, variables, step = experiment.open_run(str(tmp_path / "average"))
  assert step == 2 and evaluations.make(run)["test"].function(variables) == result["test"]
  model, variables = zoo.load(str(tmp_path / "average"))
  assert model.config.kind == "average" and not jax.tree.leaves(variables)
  assert not json.loads((tmp_path / "average/config.json").read_text())["ema_decay"]
  with raises(ValueError, "attention_maps", "'regression'"):
    registry.draw("attention_maps", run, variables, tmp_path, tmp_path / "maps.png")


# ---- plots


def test_plots_show_the_given_points_and_weights():
  points = {"train": (X[::2], Y[::2]), "test": (X[1::2], Y[1::2])}
  (axis,) = plots.regression_curve((X, Y), points, names=("day", "level")).axes
  np.testing.assert_array_equal(axis.lines[1].get_xydata(), np.stack([X, Y], 1))
  np.testing.assert_allclose(axis.lines[0].get_ydata(), Y[::2].mean())
  for drawn, given in zip(axis.collections, points.values(), strict=True):
    np.testing.assert_array_equal(drawn.get_offsets(), np.stack(given, 1))
  assert (axis.get_xlabel(), axis.get_ylabel()) == ("day", "level")

  x, keys = np.array([5.0, 1.0, 3.0]), np.array([2.0, 9.0, 4.0, 7.0])
  weights = np.arange(12.0).reshape(3, 4) / 66
  map_axis, _ = plots.attention_heat_map(weights, x, keys, name="day").axes
  np.testing.assert_array_equal(map_axis.images[0].get_array(), weights[[1, 2, 0]][:, [0, 2, 3, 1]])
  assert [label.get_text() for label in map_axis.get_xticklabels()] == ["2", "4", "7", "9"]
  assert [label.get_text() for label in map_axis.get_yticklabels()] == ["1", "3", "5"]

  errors = {"one": np.array([3.0, 1.0, 2.0])}
  for width, lines in ((2.0, 3), (np.inf, 2)):
    figure = plots.kernel_widths(np.array([1.0, 2, 4]), errors, width=width, average=4.0, names=("day", "level"))
    assert len(figure.axes[0].lines) == lines
  np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), errors["one"])
