"""Of the ablation of positions: none at all, so that the patches are a bag.

zoo train vit_nano_fashion_mnist_pos_none
"""

from configs._positions import ablation


def get_config():
  return ablation("none")
