"""Weights: read from many formats, converted by one strict table a model and layout, and written back.

    model, variables = zoo.load("mae.safetensors")                                        # written by `zoo.save`
    model, variables = zoo.load("vit-base-patch16-224/")                                  # a Hugging Face directory
    model, variables = zoo.load("mae_pretrain_vit_base.pth", "vit/b16", layout="timm", num_classes=0)

`read` reads files, `table` is the engine, `torch_layout` holds the rules that PyTorch models share, `files` puts
them together. A model's own tables are in its file, `zoo/models/NAME.py`, function `tables`.
"""

from zoo.weights.loading import average, load, load_into, save
from zoo.weights.rules import Rule, Transform, WeightsError, convert, write_back

__all__ = ["Rule", "Transform", "WeightsError", "average", "convert", "load", "load_into", "save", "write_back"]
