"""Trains a small Swin Transformer to classify the 10,000 bundled Fashion-MNIST images.

14 x 14 patches in four windows, then 7 x 7 in one; shifted windows in the first stage.

    zoo train swin_fashion_mnist

Test accuracy: 81.8 % of 2,000 images (one seed). With patches of 4 pixels and one more stage, `model.name=swin/nano4
epochs=10`, it is 84.6 % in half the epochs, at more than twice as many images a second.
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.model = dict(name="swin/nano", drop_path_rate=0.1)
  return config
