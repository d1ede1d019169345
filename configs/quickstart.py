"""Pretrains a small masked autoencoder on 10,000 bundled Fashion-MNIST images and evaluates it by a linear probe.

    zoo train quickstart

The targets are raw pixels: with targets normalised by patch, as in full-size MAEs, the many blank patches of these
images leave little to learn.
"""

from train.config import defaults


def get_config():
  config = defaults()
  # Scanned, and saving only matrix products for the backward pass: a third faster on a CPU.
  config.model = dict(name="mae/nano4", scan=True, remat="dots_saveable")
  config.data = dict(
    name="image_classification",
    dataset="fashion_mnist_small",
    image_size=28,
    crop=dict(name="pad_crop", padding=2),
    augment=(dict(name="flip"),),
  )
  config.objective = dict(name="mae", mask_ratio=0.75, norm_pix_loss=False, mean=(0.286,), std=(0.353,))
  config.batch_size = 64
  config.epochs = 20.0
  config.optimizer = dict(name="adamw", learning_rate=2e-3, warmup=0.1, weight_decay=0.05, b2=0.95)
  config.evals = dict(
    test=dict(name="loss", every_steps=500),
    probe=dict(name="linear_probe", compare_untrained=True, batch_size=256),
  )
  config.checkpoint.every_steps = 500
  config.plots = ("loss_curve", "reconstructions")
  return config
