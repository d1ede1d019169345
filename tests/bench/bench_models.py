"""Models of images against PyTorch's, timm's or (MAE) Hugging Face's: training steps, and forward passes.

    pip install -e '.[parity]'
    python tests/bench/bench_models.py [--models vit/s16 vit/b16 mae/b16 swin/t convnext/t] [--what train forward]
      [--batch 8] [--rounds 5]

Both sides get images of 224 x 224 in float32, in turns, with two threads, each in a process of its own, with huge pages
(`timing.Apart`); a training step is forward, backward and AdamW, a forward pass gives the logits of an evaluation.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import timing

SIZE = 224
TIMM = {
  "vit/s16": "vit_small_patch16_224",
  "vit/b16": "vit_base_patch16_224",
  "swin/t": "swin_tiny_patch4_window7_224",
  "convnext/t": "convnext_tiny",
}
MODELS = (*TIMM, "mae/b16")


def ours(name: str, batch: int, what: str):
  """Whose model it is, and what is timed as a function of nothing."""
  import jax

  import zoo
  from train import optim, rng
  from train.objectives import image_classification, mae
  from train.step import init_state, make_step

  model = zoo.create(name)
  images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
  pixels = (images / 127.5 - 1).astype(np.float32)
  variables = jax.jit(model.init)(rng.streams(rng.root(0), "params", "mask"), pixels[:1])
  if what == "forward":
    rngs = rng.streams(rng.root(0), "mask")
    forward = jax.jit(lambda variables, pixels: model.apply(variables, pixels, rngs=rngs)[0])
    return "ours", lambda: jax.block_until_ready(forward(variables, pixels))
  data = dict(image=images, label=np.arange(batch), valid=np.ones(batch, bool), id=np.arange(batch))
  optimizer, _ = optim.make(variables["params"], 1000, model=model, learning_rate=1e-4, weight_decay=0.05)
  objective = (mae if name.startswith("mae/") else image_classification).Objective()
  state = init_state(variables, optimizer)
  step = jax.jit(make_step(objective, model, optimizer), donate_argnums=0).lower(state, data, rng.root(0)).compile()
  holder = [state]

  def run():
    holder[0], metrics = step(holder[0], data, rng.root(0))
    jax.block_until_ready((holder[0], metrics))

  return "ours", run


def theirs(name: str, batch: int, what: str):
  """Whose model it is, and the same of the PyTorch peer as a function of nothing."""
  import timm
  import torch
  import transformers

  import zoo

  torch.set_num_threads(2)
  images = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1
  labels = torch.arange(batch)
  if name in TIMM:
    whose, model = "timm", timm.create_model(TIMM[name])

    def loss():
      return torch.nn.functional.cross_entropy(model(images), labels)
  else:
    c = zoo.create(name).config
    sizes = dict(
      hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.num_heads, intermediate_size=c.mlp_dim
    )
    whose, model = "Hugging Face", transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes))

    def loss():
      return model(images).loss

  if what == "forward":
    model.eval()

    def run():
      with torch.inference_mode():
        model(images)

    return whose, run
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

  def run():
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()

  return whose, run


def main() -> None:
  """Prints a line for each model and what is timed."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
  parser.add_argument("--what", nargs="+", choices=("train", "forward"), default=("train", "forward"))
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  timing.two_cores()
  for name in options.models:
    for what in options.what:
      case = name, options.batch, what
      made = {"ours": timing.Apart(ours, *case), "theirs": timing.Apart(theirs, *case)}
      seconds = timing.in_turns(made, options.rounds, calls=3)  # as in training: one after another
      whose = made["theirs"].about
      for side in made.values():
        side.close()
      speed = {side: options.batch / float(np.median(values)) for side, values in seconds.items()}
      print(
        f"{name:10}  images per second, {what:7}: ours {speed['ours']:.2f}, {whose} {speed['theirs']:.2f}; "
        f"ratio {timing.ratio(seconds['theirs'], seconds['ours'])}",
        flush=True,
      )


if __name__ == "__main__":
  main()
