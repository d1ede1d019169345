"""Training steps of ViT and MAE against PyTorch: timm's models where timm is installed, else Hugging Face's.

    pip install -e '.[parity]'
    python tests/bench/bench_models.py [--models vit/s16 vit/b16 mae/b16] [--batch 8] [--rounds 5]

Both sides do forward, backward and AdamW in float32 on images of the same size, in turns, with two threads, each in a
process of its own.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import timing


def ours(name: str, batch: int):
  """Whose model it is, and a compiled step as a function of nothing."""
  import jax

  import zoo
  from train import optim, rng
  from train.objectives import classify, mae
  from train.step import init_state, make_step

  # Scanned and with only the matrix products kept: unrolled, XLA for CPUs fuses the residual stream of all layers.
  model = zoo.create(name, scan=True, remat="dots_saveable")
  images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
  data = dict(image=images, label=np.arange(batch), valid=np.ones(batch, bool), id=np.arange(batch))
  variables = jax.jit(model.init)(rng.streams(rng.root(0), "params", "mask"), np.zeros((1, 224, 224, 3), np.float32))
  optimizer, _ = optim.make(variables["params"], 1000, learning_rate=1e-4, weight_decay=0.05)
  objective = (mae if name.startswith("mae/") else classify).Objective()
  state = init_state(variables, optimizer)
  step = jax.jit(make_step(objective, model, optimizer), donate_argnums=0).lower(state, data, rng.root(0)).compile()
  holder = [state]

  def run():
    holder[0], metrics = step(holder[0], data, rng.root(0))
    jax.block_until_ready((holder[0], metrics))

  return "ours", run


def theirs(name: str, batch: int):
  """Whose model it is, and the step of the PyTorch peer as a function of nothing."""
  import torch

  import zoo

  torch.set_num_threads(2)
  images = torch.rand(batch, 3, 224, 224) * 2 - 1
  labels = torch.arange(batch)
  c = zoo.create(name).config
  sizes = dict(hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.mlp_dim)
  if name.startswith("mae/"):
    import transformers

    whose, model = "Hugging Face", transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes))

    def loss():
      return model(images).loss
  else:
    try:
      import timm

      size = {384: "small", 768: "base", 1024: "large"}[c.width]
      whose, model = "timm", timm.create_model(f"vit_{size}_patch{c.patch}_224")
      logits = model
    except ImportError:
      import transformers

      config = transformers.ViTConfig(**sizes, num_labels=1000)
      whose, model = "Hugging Face", transformers.ViTForImageClassification(config)

      def logits(x):
        return model(x).logits

    def loss():
      return torch.nn.functional.cross_entropy(logits(images), labels)

  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

  def run():
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()

  return whose, run


def main() -> None:
  """Prints a line a model."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--models", nargs="+", default=["vit/s16", "vit/b16", "mae/b16"])
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  options = parser.parse_args()
  timing.two_cores()
  for name in options.models:
    sides = {"ours": timing.Apart(ours, name, options.batch), "theirs": timing.Apart(theirs, name, options.batch)}
    seconds = timing.in_turns(sides, options.rounds)
    whose = sides["theirs"].about
    for side in sides.values():
      side.close()
    speed = {side: options.batch / float(np.median(values)) for side, values in seconds.items()}
    print(
      f"{name:8}  images per second, training: ours {speed['ours']:.2f}, {whose} {speed['theirs']:.2f}; "
      f"ratio {timing.ratio(seconds['theirs'], seconds['ours'])}",
      flush=True,
    )


if __name__ == "__main__":
  main()
