"""Pretrains a small Swin by SimMIM on the bundled images and evaluates it by a linear probe.

zoo train simmim_fashion_mnist

Of 7 x 7 squares of 4 pixels, 60 % are masked. To fine-tune the encoder:

zoo train swin_fashion_mnist init.path=runs/simmim_fashion_mnist \
  "init.ignore=params/(encoder/stage_0/mask|pixels/.*)" "init.reinit=head/.*" --workdir runs/simmim_finetuned

Accuracy (one seed, 2,000 test images): 72.1 % by the linear probe, 47.8 % with an untrained encoder; 82.0 % after
fine-tuning, hardly more than the 81.8 % from scratch by the same recipe. On one core of a Xeon the two trainings take
15 and 12 minutes.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.model = dict(name="simmim/nano")
  config.objective = dict(name="simmim", mask_patch_size=4, mask_ratio=0.6, mean=(0.286,), std=(0.353,))
  config.optimizer.b2 = 0.999
  return config
