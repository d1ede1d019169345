"""ConvNeXt-B on ImageNet-1k, 300 epochs. Recipe, not run by us.

Published: 83.8 % top-1 (Liu et al. 2022, table 1; settings of table 5). All but the size and the rate of stochastic
depth is that of `convnext_t_imagenet`.

    zoo train convnext_b_imagenet --workdir runs/convnext_b

The compiler's prediction for 64 chips (`zoo plan convnext_b_imagenet --tpu v5e:8x8`): 88,591,464 parameters, 8.81 of
each chip's 15.75 GiB, which fits; 29.92 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs import convnext_t_imagenet


def get_config():
  config = convnext_t_imagenet.get_config()
  config.model.update(name="convnext/b", drop_path_rate=0.5)
  return config
