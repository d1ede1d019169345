"""Weights: read from many formats, converted by a strict table for each model and layout, and written back.

    model, variables = zoo.load("mae.safetensors")                                        # written by `zoo.save`
    model, variables = zoo.load("vit-base-patch16-224/")                                  # a Hugging Face directory
    model, variables = zoo.load("mae_pretrain_vit_base.pth", "vit/b16", layout="timm", num_classes=0)

`sources` and `formats` read files, `rules` is the table engine, `torch_layouts` has the rules that PyTorch models
share, and `tables` those of each family; `loading` and `saving` combine them.
"""

from zoo.weights.loading import load, load_into
from zoo.weights.rules import Rule, Transform, WeightsError, convert, write_back
from zoo.weights.saving import average, save

__all__ = ["Rule", "Transform", "WeightsError", "average", "convert", "load", "load_into", "save", "write_back"]
