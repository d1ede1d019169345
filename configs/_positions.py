"""What the configs of the ablation of positions share: all but the positions.

Published, of ViT-B/16, 5-shot on ImageNet (Dosovitskiy et al. 2021, table 8, added once at the input): none 61.4 %,
1-D 64.2 %, 2-D 64.0 %, relative 64.0 %.
"""

from ml_collections import ConfigDict

from configs import vit_fashion_mnist


def ablation(positions: str) -> ConfigDict:
  """The small ViT on the bundled Fashion-MNIST, with these positions (`zoo.positions.KINDS`)."""
  config = vit_fashion_mnist.get_config()
  config.model.positions = positions
  return config
