"""Errors name the nearest valid name, and all faults of a call."""

import pytest
from support import assert_names

from zoo.errors import check_call, nearest


def test_nearest():
  assert_names(nearest("adamW", ["sgd", "adamw"]), "'adamw'", "sgd, adamw")
  none_is_near = nearest("zzz", iter(["sgd", "adamw"]))
  assert "'" not in none_is_near and "sgd, adamw" in none_is_near


def function(a, b, *rest, c=1, given=None):
  del a, b, rest, c, given


def test_a_good_call_passes():
  check_call(function, dict(a=1, b=2), "f")
  check_call(function, dict(b=2, c=3), "f", given=["a"])
  check_call(lambda **anything: None, dict(whatever=1), "f")


def test_all_faults_of_a_call_at_once():
  with pytest.raises(ValueError) as error:
    check_call(function, dict(bb=1, c=2, given=3), "config.thing", given=["given"])
  lines = str(error.value).splitlines()
  assert len(lines) == 4, lines
  for line, names in zip(lines, (("'bb'", "'b'"), ("'given'",), ("'a'",), ("'b'",)), strict=True):
    assert_names(line, "config.thing", *names)
