"""The engine that converts weights by a table: its faults, each and all at once; there and back to the bit."""

import ml_dtypes
import numpy as np
import pytest
from support import assert_bit_identical

from zoo.weights import Rule, Transform, WeightsError, convert, torch_layouts, write_back

SAME = Transform(lambda t, shape: t, lambda a: a)
TABLE = (
  Rule(r"(?:new|old)\.layer\.(\d+)\.weight", "block_{:02d}/kernel", torch_layouts.TRANSPOSED),
  Rule("bias", "bias", SAME),
  Rule(r"both", ("a", "b"), Transform(lambda t, *shapes: tuple(np.split(t, 2)), lambda *a: np.concatenate(a))),
)
PARAMS = {
  "block_00": {"kernel": np.arange(6.0, dtype="f").reshape(2, 3)},
  "block_12": {"kernel": -np.arange(6.0, dtype="f").reshape(2, 3)},
  "bias": np.ones(4, "f"),
  "a": np.zeros(2, "f"),
  "b": np.full(2, 7, "f"),
}


def tensors():
  return write_back(PARAMS, TABLE)


def faults(tensors, table=TABLE, template=PARAMS, **kwargs):
  with pytest.raises(WeightsError) as error:
    convert(tensors, table, template, **kwargs)
  return error.value.faults


def test_write_back_and_convert_are_inverse():
  written = tensors()
  assert set(written) == {"new.layer.0.weight", "new.layer.12.weight", "bias", "both"}
  assert written["new.layer.0.weight"].shape == (3, 2)
  assert_bit_identical(convert(written, TABLE, PARAMS), PARAMS)


def test_older_names_are_read_too():
  old = {key.replace("new", "old"): t for key, t in tensors().items()}
  assert_bit_identical(convert(old, TABLE, PARAMS), PARAMS)


def test_half_precision_is_widened():
  half = {key: t.astype(ml_dtypes.bfloat16) for key, t in tensors().items()}
  assert_bit_identical(convert(half, TABLE, PARAMS), PARAMS)


def test_a_key_without_a_rule():
  assert faults(tensors() | {"what": np.ones(2)}) == ("what has no rule",)


def test_a_misspelt_key_and_what_it_leaves_unfilled():
  t = tensors()
  t["new.layer.12.wieght"] = t.pop("new.layer.12.weight")
  assert faults(t) == (
    "new.layer.12.wieght has no rule; did you mean new.layer.12.weight?",
    "block_12/kernel [2, 3] is not filled: there is no new.layer.12.weight",
  )


def test_a_key_with_two_rules():
  table = (*TABLE, Rule("bi.s", "bias", SAME))
  assert faults(tensors(), table) == ("bias has 2 rules: bias, bi.s",)


def test_a_parameter_with_two_keys():
  t = tensors()
  assert faults(t | {"old.layer.0.weight": t["new.layer.0.weight"]}) == (
    "old.layer.0.weight and new.layer.0.weight are both for block_00/kernel",
  )


def test_a_wrong_shape_of_the_right_size():
  assert faults(tensors() | {"new.layer.0.weight": np.ones((2, 3))}) == (
    "new.layer.0.weight has shape [2, 3], the model wants [3, 2]",
  )
  assert faults(tensors() | {"both": np.ones((3,))}) == ("both has shape [3], the model wants [4]",)


def test_a_parameter_the_model_does_not_have():
  assert faults(tensors() | {"new.layer.1.weight": np.ones((3, 2))}) == (
    "new.layer.1.weight is for block_01/kernel, which the model does not have; use `ignore` to leave it out",
  )


def test_a_missing_tensor_and_a_parameter_without_a_rule():
  t = tensors()
  del t["both"]
  assert faults(t, template=PARAMS | {"more": np.ones((1, 5))}) == (
    "a [2] is not filled: there is no both",
    "b [2] is not filled: there is no both",
    "more [1, 5] is not filled: no rule is for it",
  )


def test_integers_are_no_weights():
  assert faults(tensors() | {"bias": np.ones(4, int)}) == ("bias holds int64, not floating-point numbers",)


def test_all_faults_in_one_error():
  t = tensors() | {"extra": np.ones(1), "bias": np.ones(5)}
  del t["both"]
  with pytest.raises(ValueError, match=r"model:\n  bias has shape \[5\].*\n  extra has no rule\n  a .*\n  b "):
    convert(t, TABLE, PARAMS)


def test_ignored_only_when_asked():
  t = tensors() | {"head.weight": np.ones(1), "head.bias": np.ones(1)}
  assert len(faults(t)) == 2
  assert faults(t, ignore=["head"]) == faults(t)  # the whole key must match
  assert_bit_identical(convert(t, TABLE, PARAMS, ignore=[r"head\..*"]), PARAMS)


def test_an_ignoring_rule():
  table = (*TABLE, Rule("position_ids", (), torch_layouts.IGNORED))
  assert_bit_identical(convert(tensors() | {"position_ids": np.arange(3)}, table, PARAMS), PARAMS)
  assert "position_ids" not in write_back(PARAMS, table)


def test_write_back_needs_a_rule_for_everything():
  with pytest.raises(WeightsError, match="more has no rule"):
    write_back(PARAMS | {"more": np.ones(1)}, TABLE)
  with pytest.raises(WeightsError, match="bias has 2 rules"):
    write_back(PARAMS, (*TABLE, Rule("c", "bias", SAME)))
