"""Names of the parameters of published weights of `zoo.models.simmim`."""

from zoo.models import simmim
from zoo.weights import torch_layouts as torch
from zoo.weights.rules import Rule
from zoo.weights.tables import swin

# A Hugging Face `config.json`: see `swin.HUGGINGFACE`.
HUGGINGFACE = swin.HUGGINGFACE | dict(
  architectures={"SwinForMaskedImageModeling": {}, "Swinv2ForMaskedImageModeling": {}}
)


def tables(config: simmim.Config) -> dict[str, tuple[Rule, ...]]:
  """The names of our parameters in published weights, by layout.

  "huggingface": SwinForMaskedImageModeling, and that of Swinv2. "microsoft": the released .pth files of SimMIM.
  """
  layouts = swin.tables(config)
  decoder = (
    Rule(r"decoder\.0\.weight", "pixels/kernel", torch.shuffled(config.num_channels, kernel=True)),
    Rule(r"decoder\.0\.bias", "pixels/bias", torch.shuffled(config.num_channels, kernel=False)),
  )

  released = (rule._replace(pattern=rf"encoder\.{rule.pattern}") for rule in layouts["microsoft"])
  return {"huggingface": (*layouts["huggingface"], *decoder), "microsoft": (*released, *decoder)}
