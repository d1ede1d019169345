"""What the recipes need on TPU slices, as the TPU compiler predicts it: the table of docs/plan.md.

    pip install -e '.[plan]'
    python tests/bench/bench_recipes.py [--only mae] [--missing] [--write]

A recipe takes half a minute to three minutes on two cores. `--write` puts the rows into the page, in the place of
those of the same recipes; `--only` takes those whose name begins so.
"""

import argparse
import os
import time
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
PRICE = 1.2  # of a chip of v5e and hour, in dollars (cloud.google.com/tpu/pricing, on demand)
# Slice -> configs with their overrides.
RECIPES = {
  "v5e:1x1": ("bert_base_24h", "glue:mnli", "conll2003", "squad:v1"),
  "v5e:2x4": ("transformer_wmt14_en_de:base", "transformer_wmt14_en_de:big"),
  "v5e:4x4": (
    *("vit_s16_imagenet", "swin_imagenet:t", "swin_imagenet:s", "swin_imagenet:b", "convnext_imagenet:t"),
    *("mae_finetune_imagenet:b16", "mae_linear_imagenet:b16", "bert_phase1:base", "bert_phase2:base"),
    *("upernet_swin_t_oxford_pet", "upernet_convnext_t_oxford_pet"),
  ),
  "v5e:4x8": (
    *("mae_imagenet:b16", "mae_imagenet:l16", "mae_imagenet:l16 grad_accum_steps=4", "simmim_b_imagenet"),
    *("mae_finetune_imagenet:l16", "convnext_imagenet:s"),
  ),
  "v5e:8x8": (
    *("vit_b16_imagenet", "vit_b16_imagenet model.scan=False model.remat=none", "patch_prediction_b16_imagenet"),
    *("simmim_b_finetune_imagenet", "swin_b_384_finetune", "convnext_imagenet:b", "convnext_imagenet:l"),
    *("bert_phase1:large", "bert_phase2:large", "bert_base_roberta", "mae_imagenet:h14"),
    *("mae_finetune_imagenet:h14 parallel.fsdp=8",),
  ),
  "v5e:8x16": ("swin_b_imagenet22k",),
  "v5e:16x16": ("bert_phase1:large_lamb", "bert_phase2:large_lamb"),
}


def main() -> None:
  """Prints the rows, and writes them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", default="", help="recipes whose name begins so")
  parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
  parser.add_argument("--missing", action="store_true", help=f"only recipes that {PAGE.name} has not")
  options = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  from train import config
  from train.plan.command import markdown_head, markdown_row
  from train.plan.report import plan

  head = markdown_head(PRICE)
  print(head, flush=True)
  for topology, recipes in RECIPES.items():
    for recipe in recipes:
      if recipe.startswith(options.only) and not (options.missing and _key(recipe, topology) in _rows()[1]):
        name, *overrides = recipe.split()
        start = time.monotonic()
        row = markdown_row(recipe, plan(config.load(name, overrides), topology), PRICE)
        print(f"{row} {time.monotonic() - start:.0f} s", flush=True)
        if options.write:
          _write(_key(recipe, topology), row, head)


def _key(recipe: str, topology: str) -> tuple[str, str]:
  return f"| `{recipe}`", topology


def _rows() -> tuple[str, dict[tuple[str, str], str], str]:
  """The page before the rows of the table, these by recipe and slice, and the page after them."""
  before, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- recipes -->\n")
  table, end, after = rest.partition("<!-- end of recipes -->")
  rows = {(cells[0], cells[1]): line for line in table.splitlines()[2:] if (cells := line.split(" | "))}
  return before + start, rows, end + after


def _write(key: tuple[str, str], row: str, head: str) -> None:
  """Puts a row into the page's table."""
  before, rows, after = _rows()
  rows[key] = row
  order = [_key(recipe, topology) for topology, recipes in RECIPES.items() for recipe in recipes]
  lines = [*head.splitlines(), *(rows[key] for key in order if key in rows)]
  PAGE.write_text(before + "".join(f"{line}\n" for line in lines) + after, encoding="utf-8")


if __name__ == "__main__":
  main()
