"""UPerNet on ConvNeXt-T: pets, their outlines and the background in Oxford-IIIT Pet. Recipe, not run by us.

The head, the learning rate and the crops are those of Liu et al. 2022 (B.1) for ADE20K, which TFDS does not have with
class masks; no result is published for this set. `init.path` is a classifier's work directory.

    zoo prepare oxford_iiit_pet --data-dir data
    zoo train upernet_convnext_t_oxford_pet init.path=runs/convnext_t --workdir runs/upernet_convnext_t

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._segmenter import upernet


def get_config():
  config = upernet("convnext/t", r"(norm|head)", "feature_norm", drop_path_rate=0.4)
  config.optimizer = dict(name="adamw", learning_rate=1e-4, warmup=500, weight_decay=0.05)
  return config
