"""Errors name the nearest right word, and all that is wrong with a call."""

import pytest

from zoo.errors import check_call, nearest


def test_nearest():
  assert nearest("adamW", ["sgd", "adamw"]) == "; did you mean 'adamw'? There are: sgd, adamw"
  assert nearest("zzz", iter(["sgd", "adamw"])) == ". There are: sgd, adamw"


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
  assert "config.thing has no 'bb'; did you mean 'b'?" in lines[0]
  assert "config.thing has no 'given'" in lines[1]
  assert lines[2:] == ["config.thing needs 'a'", "config.thing needs 'b'"]
