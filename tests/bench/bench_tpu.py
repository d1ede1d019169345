"""Training steps on a TPU v5e as the TPU compiler predicts them, beside the published implementations' predictions.

    pip install -e '.[plan]'
    python tests/bench/bench_tpu.py [--only vit] [--only bert] [--tpu v5e:2x2] [KEY=VALUE ...]

Four chips, data-parallel, bfloat16, forward, backward and AdamW, at equal work; unrolled, without rematerialisation. A
row takes one minute to a quarter of an hour on two cores. Peers were counted in the same way from their own training
steps (big_vision, Hugging Face Flax, jax-models). KEY=VALUE overrides go to every config, such as model.attention=xla.
"""

import argparse
from typing import NamedTuple


class Row(NamedTuple):
  """A step: what it is, its config with overrides, and the Mcycles and name of a peer."""

  title: str
  config: str
  overrides: tuple[str, ...]
  peer: tuple[float, str] | None = None


PLAIN = ("model.scan=False", "model.remat=none")
NO_MIX = ("objective.mixup=0.0", "objective.cutmix=0.0")
VIT = ("model.dropout_rate=0.0", "model.pool=gap", "model.class_token=False", "model.position_embedding=sincos_2d")
VIT += ("model.representation_size=0", "model.drop_path_rate=0.0")
ROWS = {
  "vit": Row("ViT-B/16, 128 images", "vit_b16_imagenet", ("batch_size=512", *VIT, *NO_MIX), (299.7, "big_vision")),
  "bert": Row("BERT-base, 32 x 512 tokens", "bert_phase2:base", ("batch_size=128",), (307.0, "Hugging Face Flax")),
  "swin": Row("Swin-T, 128 images", "swin_imagenet:t", ("batch_size=512", *NO_MIX), (525.2, "jax-models")),
  "mae": Row("MAE ViT-L/16, 64 images, 75 % masked", "mae_imagenet:l16", ("batch_size=256", "grad_accum_steps=1")),
  "all patches": Row(
    "the same, no patch masked in the encoder, 32 images",
    "mae_imagenet:l16",
    ("batch_size=128", "grad_accum_steps=1", "objective.mask_ratio=0.005"),
  ),
  "transformer": Row("Transformer base, 64 x (64 + 64) tokens", "transformer_wmt14_en_de:base", ("batch_size=256",)),
  "convnext": Row("ConvNeXt-T, 128 images", "convnext_imagenet:t", ("batch_size=512", *NO_MIX)),
}


def main() -> None:
  """Prints a row of Markdown for each step."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
  parser.add_argument("--only", action="append", choices=ROWS, help="a row; may be repeated")
  parser.add_argument("--tpu", default="v5e:2x2")
  options = parser.parse_args()
  import os

  os.environ["JAX_PLATFORMS"] = "cpu"
  from train import config
  from train.plan.report import plan

  print("| step of a chip | peer | Mcycles | of the peer's | MFU | HBM | compiled in |\n|---|---|---|---|---|---|---|")
  for name in options.only or ROWS:
    title, source, overrides, peer = ROWS[name]
    found = plan(config.load(source, [*PLAIN, *overrides, *options.overrides]), options.tpu)
    if not found.cycles:
      print(f"| {title} | | does not fit: {found.memory.peak / 2**30:.1f} GiB | | | | |", flush=True)
      continue
    cells = [title, f"{peer[0]} ({peer[1]})" if peer else "", f"{found.cycles.total / 1e6:.1f}"]
    cells += [f"{found.cycles.total / 1e6 / peer[0]:.2f}" if peer else "", f"{found.mfu or 0:.2f}"]
    cells += [f"{found.memory.peak / 2**30:.2f} GiB", f"{found.compile_seconds:.0f} s"]
    print(f"| {' | '.join(cells)} |", flush=True)
    if found.cycles.unknown:
      print(f"not counted: {', '.join(found.cycles.unknown)}", flush=True)


if __name__ == "__main__":
  main()
