"""Fine-tunes at 40 pixels the small ViT that `zoo train vit_fashion_mnist` trained at 28, on the bundled images.

Its table of 7 x 7 position embeddings is resampled to 10 x 10 (Dosovitskiy et al. 2021, 3.2). The images are scaled up:
they contain no more detail, but are cut into twice as many patches.

zoo train vit_fashion_mnist
zoo train vit_nano_fashion_mnist_40px
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.data.image_size = 40
  config.model.image_size = (40, 40)
  config.init = dict(path="runs/vit_fashion_mnist", resample=True)
  config.optimizer.learning_rate = 2e-4
  config.epochs = 5.0
  return config
