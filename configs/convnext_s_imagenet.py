"""ConvNeXt-S on ImageNet-1k, 300 epochs. Recipe, not run by us.

Published: 83.1 % top-1 (Liu et al. 2022, table 1; settings of table 5). All but the size and the rate of stochastic
depth is that of `convnext_t_imagenet`.

    zoo train convnext_s_imagenet --workdir runs/convnext_s

The compiler's prediction for 32 chips (`zoo plan convnext_s_imagenet --tpu v5e:4x8`): 50,223,688 parameters, 11.74 of
each chip's 15.75 GiB, which fits; 33.83 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs import convnext_t_imagenet


def get_config():
  config = convnext_t_imagenet.get_config()
  config.model.update(name="convnext/s", drop_path_rate=0.4)
  return config
