"""Of the ablation of positions: a learned vector for each patch, as ViT has.

zoo train vit_nano_fashion_mnist_pos_1d
"""

from configs._positions import ablation


def get_config():
  return ablation("learned_1d")
