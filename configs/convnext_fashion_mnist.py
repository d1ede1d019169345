"""A small ConvNeXt on the bundled Fashion-MNIST, by the recipe of `vit_fashion_mnist`: convolution against attention.

zoo train convnext_fashion_mnist

It ends with 87.3 % of the 2,000 test images told rightly (one seed).
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.model = dict(name="convnext/nano", drop_path_rate=0.1)
  return config
