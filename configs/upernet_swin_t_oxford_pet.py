"""UPerNet on Swin-T: pets, their outlines and the background in Oxford-IIIT Pet. Recipe, not run by us.

The head, the crops, the learning rate and its linear decay are those of Liu et al. 2021 (A2.3) for ADE20K, which TFDS
does not have with class masks; no result is published for this set. Stochastic depth is the paper's 0.2, where
mmsegmentation's `upernet_swin_tiny_patch4_window7_512x512_160k_ade20k` has 0.3; warm-up is 500 of 9,200 steps, there
1,500 of 160,000. `init.path` is a classifier's work directory.

    zoo prepare oxford_iiit_pet --data-dir data
    zoo train upernet_swin_t_oxford_pet init.path=runs/swin_t --workdir runs/upernet_swin_t

What a step and the run take on TPUs, as the compiler predicts it: `docs/plan.md`.
"""

from configs._segmenter import upernet


def get_config():
  # Windows keep their size, as in the published backbones for dense tasks.
  config = upernet("swin/t", r"(encoder/norm|head)", "head_norm", drop_path_rate=0.2, clamp_window="never")
  config.optimizer = dict(name="adamw", learning_rate=6e-5, schedule="linear", warmup=500, weight_decay=0.01)
  return config
