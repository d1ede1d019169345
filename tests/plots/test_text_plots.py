"""Plots of texts: inputs of a token, masked tokens, beams."""

import numpy as np
from support import assert_plotted, raises

from train import plots


def test_token_inputs_has_a_row_for_each_input(tmp_path):
  numbers = {"type": [0, 0, 1], "position": [0, 1, 2]}
  figure = plots.token_inputs(["[CLS]", "a", "b"], numbers, path=tmp_path / "row.png")
  assert_plotted(tmp_path / "row.png")
  first, second = figure.axes
  assert [t.get_text() for t in first.get_xticklabels()] == ["[CLS]", "a", "b"]
  for axis, values in zip(figure.axes, numbers.values(), strict=True):
    assert [t.get_text() for t in axis.texts][:3] == [str(value) for value in values]
    assert len({patch.get_facecolor() for patch in axis.patches}) == len({*values})
  assert [axis.texts[3].get_text() for axis in (first, second)] == [*numbers]


def test_masked_tokens_are_distinguished(tmp_path):
  tokens = ["[CLS]", "a", "b", "c"]
  shown = [["[CLS]", "[MASK]", "x", "c"], tokens]
  chosen = np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool)
  figure = plots.masked_tokens(tokens, shown, chosen, path=tmp_path / "masked.png")
  assert_plotted(tmp_path / "masked.png")
  (axis,) = figure.axes
  assert [t.get_text() for t in axis.texts] == [*shown[0], *shown[1]]
  assert [t.get_text() for t in axis.get_yticklabels()] == tokens
  colours = [patch.get_facecolor() for patch in axis.patches]
  plain, masked, other, stays = colours[:4]
  assert len({*colours[:4]}) == 4 and colours[4:] == [plain] * 3 + [stays]
  legend = dict(
    zip([t.get_text() for t in figure.legends[0].get_texts()], figure.legends[0].get_patches(), strict=True)
  )
  assert {name: patch.get_facecolor() for name, patch in legend.items()} == {
    "masked": masked, "random token": other, "unchanged": stays,
  }  # fmt: skip


def test_beam_tree_has_a_node_for_each_beginning_and_no_crossing(tmp_path):
  followed = [[("a",), ("b",)], [("b", "c"), ("a", "d"), ("b", "e")], [("a", "d", "."), ("b", "e", ".")]]
  figure = plots.beam_tree(followed, ("b", "e", "."), path=tmp_path / "tree.png")
  assert_plotted(tmp_path / "tree.png")
  words = {t.get_text(): t for t in figure.axes[0].texts if t.get_text() != "."}
  assert {*words} == {"<s>", *"abcde"} and len(figure.axes[0].texts) == 8
  assert {w for w, t in words.items() if t.get_weight() == "bold"} == {"<s>", "b", "e"}
  heights = {w: t.get_position()[1] for w, t in words.items()}
  assert heights["d"] == heights["a"] < heights["c"] < heights["e"]  # children under their own parents
  with raises(ValueError, "('b', 'c')"):
    plots.beam_tree([[("a",)], [("b", "c")]], ("a",))
