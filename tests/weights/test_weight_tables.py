"""The engine that converts weights by a table: its faults, each and all at once; the inverse is bit-identical."""

import ml_dtypes
import numpy as np
import pytest
from support import assert_bit_identical, assert_names, raises

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


def assert_faults(found, *named):
  """One fault for each tuple of names, in this order."""
  assert len(found) == len(named), found
  for fault, names in zip(found, named, strict=True):
    assert_names(fault, *names)


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
  assert_faults(faults(tensors() | {"what": np.ones(2)}), ("what",))


def test_a_misspelt_key_and_what_it_leaves_unfilled():
  t = tensors()
  t["new.layer.12.wieght"] = t.pop("new.layer.12.weight")
  assert_faults(
    faults(t), ("new.layer.12.wieght", "new.layer.12.weight"), ("block_12/kernel", [2, 3], "new.layer.12.weight")
  )


def test_a_key_with_two_rules():
  table = (*TABLE, Rule("bi.s", "bias", SAME))
  assert_faults(faults(tensors(), table), ("bias", 2, "bi.s"))


def test_a_parameter_with_two_keys():
  t = tensors()
  found = faults(t | {"old.layer.0.weight": t["new.layer.0.weight"]})
  assert_faults(found, ("old.layer.0.weight", "new.layer.0.weight", "block_00/kernel"))


def test_a_wrong_shape_of_the_right_size():
  found = faults(tensors() | {"new.layer.0.weight": np.ones((2, 3))})
  assert_faults(found, ("new.layer.0.weight", [2, 3], [3, 2]))
  assert_faults(faults(tensors() | {"both": np.ones((3,))}), ("both", [3], [4]))


def test_a_parameter_the_model_does_not_have():
  found = faults(tensors() | {"new.layer.1.weight": np.ones((3, 2))})
  assert_faults(found, ("new.layer.1.weight", "block_01/kernel", "ignore"))


def test_a_missing_tensor_and_a_parameter_without_a_rule():
  t = tensors()
  del t["both"]
  found = faults(t, template=PARAMS | {"more": np.ones((1, 5))})
  assert_faults(found, ("a [2]", "both"), ("b [2]", "both"), ("more [1, 5]",))


def test_integers_are_no_weights():
  assert_faults(faults(tensors() | {"bias": np.ones(4, int)}), ("bias", "int64"))


def test_all_faults_in_one_error():
  t = tensors() | {"extra": np.ones(1), "bias": np.ones(5)}
  del t["both"]
  with pytest.raises(ValueError) as error:
    convert(t, TABLE, PARAMS)
  assert_faults(str(error.value).splitlines()[1:], ("bias", [5]), ("extra",), ("a ", [2]), ("b ", [2]))


def test_keys_are_ignored_on_request_only():
  t = tensors() | {"head.weight": np.ones(1), "head.bias": np.ones(1)}
  assert len(faults(t)) == 2
  assert faults(t, ignore=["head"]) == faults(t)  # the whole key must match
  assert_bit_identical(convert(t, TABLE, PARAMS, ignore=[r"head\..*"]), PARAMS)


def test_an_ignoring_rule():
  table = (*TABLE, Rule("position_ids", (), torch_layouts.IGNORED))
  assert_bit_identical(convert(tensors() | {"position_ids": np.arange(3)}, table, PARAMS), PARAMS)
  assert "position_ids" not in write_back(PARAMS, table)


def test_write_back_needs_a_rule_for_everything():
  with raises(WeightsError, "more"):
    write_back(PARAMS | {"more": np.ones(1)}, TABLE)
  with raises(WeightsError, "bias", 2):
    write_back(PARAMS, (*TABLE, Rule("c", "bias", SAME)))
