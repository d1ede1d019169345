"""`zoo plan` as it is typed: what it prints and writes, with the real TPU compiler."""

import json
import re

import pytest

from train import cli

NAME, TPU = "vit_fashion_mnist", ["--tpu", "v5e:2x2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_a_page_that_needs_no_network(folder, capsys):
  assert cli.main(["plan", NAME, *TPU, "--price", "1.2", "--html", "plan.html", "--json", "plan.json"]) == 0
  printed, page = capsys.readouterr().out, (folder / "plan.html").read_text()
  result = json.loads((folder / "plan.json").read_text())
  assert 0 < result["mfu"] < 1 and result["rate"] == pytest.approx(result["batch_size"] / result["seconds"])
  parts = sum(part["cycles"] for part in result["cycles"]["parts"])
  assert parts == pytest.approx(result["cycles"]["compute"])
  for words in ("predicted step", "images/s", "MFU", "all-reduce"):
    assert words in printed and words in page
  assert "encoder/block/attn" in page and not re.search(r"https?:|src=|<script", page)


def test_two_settings_side_by_side(folder, capsys):
  assert cli.main(["plan", NAME, *TPU, "batch_size=64", "--compare", "batch_size=128", "--json", "plan.json"]) == 0
  result = json.loads((folder / "plan.json").read_text())
  assert (result["plan"]["batch_size"], result["compared"]["batch_size"]) == (64, 128)
  speed = re.search(r"speed\s+1\s+([\d.]+)", capsys.readouterr().out)
  assert float(speed[1]) == pytest.approx(result["compared"]["rate"] / result["plan"]["rate"], abs=0.01)
