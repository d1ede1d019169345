"""ViT-B/16 on ImageNet-1k, 300 epochs, with AugReg's "medium2" regularisation. Recipe, not run by us.

After Steiner et al. 2022, "How to train your ViT?"; its RandAugment goes to magnitude 15, ours ends at 10. Published
for ViT-B/16 trained on ImageNet-1k alone: 77.9 % top-1, after fine-tuning at 384 px (Dosovitskiy et al. 2021, table 5),
for which there is no config here.

    zoo prepare imagenet2012 --data-dir data
    zoo train vit_b16_imagenet --workdir runs/vit_b16

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
`model.scan=False model.remat=none` takes less time and more memory, and several minutes to compile.
"""

from configs._imagenet import imagenet


def get_config():
  config = imagenet(augment=(dict(name="rand_augment", layers=2, magnitude=10, deviation=0.0, probability=1.0),))
  config.model = dict(
    name="vit/b16",
    representation_size=768,
    dropout_rate=0.1,
    drop_path_rate=0.1,
    scan=True,
    remat="dots_saveable",
    dtype="bfloat16",
  )
  config.objective = dict(name="image_classification", mixup=0.5, mean=(0.5,), std=(0.5,))
  config.batch_size = 4096
  config.epochs = 300.0
  config.optimizer = dict(
    name="adamw", learning_rate=1e-3, warmup=10_000, weight_decay=0.1, grad_clip_norm=1.0, mu_dtype="bfloat16"
  )
  config.evals = dict(val=dict(name="loss", every_steps=2500))
  config.checkpoint.best_metric = "val/accuracy"
  return config
