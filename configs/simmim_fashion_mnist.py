"""Pretrains a small Swin to tell the pixels of hidden squares, on the bundled images, and probes what it has learned.

zoo train simmim_fashion_mnist

Of 7 x 7 squares of 4 pixels, 60 % are hidden. To fine-tune what it learned:

zoo train swin_fashion_mnist init.path=runs/simmim_fashion_mnist \
  "init.ignore=params/(encoder/stage_0/mask|pixels/.*)" "init.reinit=head/.*" --workdir runs/simmim_finetuned

The probe comes to 72.1 %, and to 47.8 % of an untrained encoder; fine-tuned it is 82.0 %, hardly more than the 81.8 %
from scratch under the same recipe (one seed, 2,000 test images). On one core of a Xeon the two trainings take 15 and 12
minutes.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.model = dict(name="simmim/nano")
  config.objective = dict(name="simmim", unit=4, mask_ratio=0.6, mean=(0.286,), std=(0.353,))
  config.optimizer.b2 = 0.999
  return config
