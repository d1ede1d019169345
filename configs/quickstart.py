"""Pretrains a small masked autoencoder on 10,000 bundled Fashion-MNIST images and probes what it has learned.

zoo train configs/quickstart.py
"""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(name="mae/nano4")
  config.data = dict(
    name="images",
    dataset="fashion_mnist_small",
    image_size=28,
    crop=dict(name="pad_crop", padding=2),
    augment=(dict(name="flip"),),
  )
  config.objective = dict(name="mae", mask_ratio=0.75, mean=(0.286,), std=(0.353,))
  config.batch_size = 256
  config.epochs = 40.0
  config.optimizer = dict(name="adamw", learning_rate=2e-3, warmup=0.1, weight_decay=0.05, b2=0.95)
  config.evals = dict(
    test=dict(name="loss", every=400),
    probe=dict(name="linear_probe", compare_untrained=True),
  )
  config.checkpoint.every = 400
  config.pictures = ("loss_curve", "reconstructions")
  return config
