"""ViT-B/16 pretrained by masked patch prediction on ImageNet-1k, 1M steps. Recipe, not run by us.

Published: 79.9 % top-1 after fine-tuning, 2 % more than from scratch (Dosovitskiy et al. 2021, 4.6 and B.1.2), with
JFT-300M for the images, of which 1M steps are 14 epochs; of ImageNet they are 3,200. B.1.2 reports similar gains from
ImageNet, and little more after 100k steps: steps=100_000 is enough. What the paper does not report, such as
augmentation and weight decay, is kept minimal here.

    zoo prepare imagenet2012 --data-dir data
    zoo train patch_prediction_b16_imagenet --workdir runs/patch_prediction_b16
    zoo train vit_b16_imagenet init.path=runs/patch_prediction_b16 model.representation_size=0 \
      "init.ignore=params/(encoder/mask|head/.*)" "init.reinit=head/.*" --workdir runs/patch_prediction_b16_finetune

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._imagenet import imagenet


def get_config():
  config = imagenet()
  config.model = dict(name="patch_prediction/b16", scan=True, remat="dots_saveable", dtype="bfloat16")
  config.objective = dict(
    name="patch_prediction", mask_prob=0.5, mask_token_prob=0.8, random_patch_prob=0.1, mean=(0.5,), std=(0.5,)
  )
  config.batch_size = 4096
  config.steps = 1_000_000
  config.optimizer = dict(name="adamw", learning_rate=2e-4, warmup=10_000)
  config.evals = dict(val=dict(name="loss", every_steps=10_000))
  return config
