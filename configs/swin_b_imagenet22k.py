"""Swin-B pretrained on ImageNet-22k, 90 epochs at 224 px. Recipe, not run by us.

Published: 85.2 % top-1 on ImageNet-1k after fine-tuning at 224 px, 86.4 % at 384 px (Liu et al. 2021, table 1). The
settings are those of the released code; the paper says a linear decay of the learning rate, and weight decay 0.01
(4.1).

TFDS does not have this set. With a folder for each of its 21,841 classes, `image_folder` of docs/extending.md builds
it; the last 1 % is for evaluation. Fine-tuning initialises a new head, where the released code selected the rows of the
old head for the classes of ImageNet-1k.

    zoo prepare image_folder --data-dir data --source imagenet22k
    zoo train swin_b_imagenet22k --workdir runs/swin_b_22k
    zoo train swin_b_384_finetune model.drop_path_rate=0.2 init.path=runs/swin_b_22k \
      "init.ignore=params/head/.*" "init.reinit=head/.*" --workdir runs/swin_b_22k_384

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._swin import swin

IMAGES = 14_197_122  # of all 21,841 classes, as published


def get_config():
  config = swin("swin/b", drop_path_rate=0.2)
  config.model.num_classes = 21_841
  config.data.update(dataset="image_folder", train_split="train[:99%]", eval_split="train[99%:]")
  config.batch_size = 4096
  config.epochs = 90.0
  config.optimizer.warmup = round(5 * 0.99 * IMAGES / config.batch_size)
  return config
