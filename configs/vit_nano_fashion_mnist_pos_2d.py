"""Of the ablation of positions: a learned half of a vector for each row, and one for each column.

zoo train vit_nano_fashion_mnist_pos_2d
"""

from configs._positions import ablation


def get_config():
  return ablation("learned_2d")
