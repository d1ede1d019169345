"""Of the ablation of positions: learned keys of the offset from patch to patch, in every layer.

zoo train vit_nano_fashion_mnist_pos_relative
"""

from configs._positions import ablation


def get_config():
  return ablation("relative")
