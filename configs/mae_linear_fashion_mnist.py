"""Trains a linear layer on the frozen encoder pretrained by `zoo train quickstart`, on the bundled images.

zoo train quickstart
zoo train mae_linear_fashion_mnist
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.model = dict(
    name="vit/nano4", scan=True, remat="dots_saveable", pool="gap", position_embedding="sincos_2d", head_norm="batch"
  )
  config.init = dict(path="runs/quickstart", ignore=(r"params/decoder/.*",), reinit=(r"head_norm/.*", r"head/.*"))
  config.objective.label_smoothing = 0.0
  config.optimizer = dict(name="lars", learning_rate=3.0, warmup=0.1, momentum=0.9, freeze=(r"^encoder/",))
  config.epochs = 10.0
  return config
