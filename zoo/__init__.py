"""The transformer zoo: attention-based models as pure functions of (parameters, inputs), in Flax Linen.

model = zoo.create("vit/b16", num_classes=10)
variables = model.init({"params": jax.random.key(0)}, image_BYXC)
logits_BV, aux = model.apply(variables, image_BYXC)
"""

from zoo import decoding
from zoo.registry import create, family, list_models
from zoo.weights import load, save

__version__ = "0.1.0"

__all__ = ["__version__", "create", "decoding", "family", "list_models", "load", "save"]
