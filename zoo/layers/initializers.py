"""Initialisers by name, each with the paper or code that chose it.

A dense kernel is drawn as a matrix [inputs, outputs], so the fans below are those of the whole projection, not of one
head.
"""

from flax import linen as nn

# Glorot & Bengio 2010, eq. 16: every dense kernel of ViT (Dosovitskiy et al. 2021) and MAE (He et al. 2022, A.1).
dense = nn.initializers.xavier_uniform()

# ViT's released code draws the MLP biases with a deviation of 1e-6; all other biases start at zero.
mlp_bias = nn.initializers.normal(1e-6)

# MAE, A.1: class and mask tokens. A plain normal: `truncated_normal(0.02)` would have deviation 0.0176.
token = nn.initializers.normal(0.02)

# Swin's released code: all dense kernels, bias tables and the head. What it truncates is beyond 100 deviations.
swin = nn.initializers.normal(0.02)

# PyTorch's default for a convolution, uniform within 1 / sqrt(inputs): Swin's patches, which its code leaves at that.
fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Learned positions of BERT and ViT.
position = nn.initializers.normal(0.02)

# ConvNeXt (Liu et al. 2022; released code): every kernel. Cut at an absolute 2, which is no cut at all.
normal = nn.initializers.normal(0.02)

# He et al. 2015, eq. 10: convolutions before a ReLU. Also kernels that are standardised before use, so that how large
# they are drawn is no matter.
he = nn.initializers.he_normal()

# ViT B.1.1: the classifier starts at zero, so that the first predictions are uniform.
head = nn.initializers.zeros


def bert(deviation: float = 0.02) -> nn.initializers.Initializer:
  """BERT (Devlin et al. 2019; released code): every matrix, table and head.

  Truncated at two deviations, so that the deviation of what is drawn is 0.88 times `deviation`.
  """
  return nn.initializers.truncated_normal(deviation)
