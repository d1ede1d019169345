"""Of the ablation of positions: sines and cosines of row and column, nothing learned, as MAE has.

zoo train vit_nano_fashion_mnist_pos_sincos
"""

from configs._positions import ablation


def get_config():
  return ablation("sincos_2d")
