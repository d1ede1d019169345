"""Fine-tunes the encoder pretrained by `zoo train quickstart` on the bundled images.

zoo train quickstart
zoo train mae_finetune_fashion_mnist
"""

from configs import vit_fashion_mnist


def get_config():
  config = vit_fashion_mnist.get_config()
  config.model = dict(
    name="vit/nano4",
    scan=True,
    remat="dots_saveable",
    pool="gap",
    position_embedding="sincos_2d",
    final_norm=False,
    head_norm="layer",
    drop_path_rate=0.1,
  )
  config.init = dict(
    path="runs/quickstart", ignore=(r"params/(decoder|encoder/norm)/.*",), reinit=(r"head_norm/.*", r"head/.*")
  )
  config.optimizer.layer_decay = 0.75
  config.epochs = 10.0
  return config
