"""ConvNeXt-L on ImageNet-1k, 300 epochs. Recipe, not run by us.

Published: 84.3 % top-1 (Liu et al. 2022, table 1; settings of table 5). All but the size and the rate of stochastic
depth is that of `convnext_t_imagenet`.

    zoo train convnext_l_imagenet --workdir runs/convnext_l

The compiler's prediction for 64 chips (`zoo plan convnext_l_imagenet --tpu v5e:8x8`): 197,767,336 parameters, 14.85 of
each chip's 15.75 GiB, which fits; 66.96 ms a step at the chips' peak. Not measured: we have no TPU.
"""

from configs import convnext_t_imagenet


def get_config():
  config = convnext_t_imagenet.get_config()
  config.model.update(name="convnext/l", drop_path_rate=0.5)
  return config
