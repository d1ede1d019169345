"""A small ConvNeXt on the bundled Fashion-MNIST, by the recipe of `vit_fashion_mnist`: convolution against attention.

zoo train convnext_fashion_mnist
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.model = dict(name="convnext/nano", drop_path=0.1)
  return config
