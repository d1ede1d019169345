"""A run of seconds: a very small masked autoencoder, some steps over the bundled images."""

from train.config import defaults


def get_config():
  config = defaults()
  config.model = dict(
    name="mae/nano4", width=16, depth=2, mlp_dim=24, num_heads=2, decoder_width=16, decoder_depth=1, decoder_mlp_dim=24
  )
  config.data = dict(
    name="image_classification",
    dataset="fashion_mnist_small",
    image_size=28,
    train_split="train[:500]",
    eval_split="test[:50]",
    crop=dict(name="pad_crop", padding=2),
    augment=(dict(name="flip"),),
  )
  config.objective = dict(name="mae", mean=(0.286,), std=(0.353,))
  config.batch_size = 16
  config.steps = 60
  config.ema_decay = 0.9
  config.optimizer = dict(name="adamw", learning_rate=2e-3, warmup=0.1, weight_decay=0.05, b2=0.95)
  config.evals = dict(test=dict(name="loss", every_steps=20))
  config.checkpoint.update(every_steps=10, max_to_keep=4)
  config.log_every_steps = 1
  config.plots = ()
  return config
