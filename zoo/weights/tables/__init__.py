"""The names of our parameters in published weights: a file for each family, with its `tables` and `HUGGINGFACE`."""

import importlib
import importlib.util
from typing import Any


def of(name: str) -> Any:
  """The tables of the family of the model `name`, such as "vit" or "vit/b16"; None where there are none."""
  module = f"{__name__}.{name.partition('/')[0]}"
  return importlib.import_module(module) if importlib.util.find_spec(module) else None
