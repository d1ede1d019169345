"""Makes the golden files: small random Hugging Face models and what they compute, for `tests/models/test_golden.py`.

    pip install -e '.[parity]' && python tests/golden/make_goldens.py

Each directory is a Hugging Face one (config.json, model.safetensors) and has `expected.npz`: inputs, every
layer's output, and the results. No two sizes of a model are equal where they could be confused.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent


def randomise(model, seed: int = 0):
  """Gives every parameter a value that matters, in evaluation mode."""
  if hasattr(model, "vit") and hasattr(model, "decoder"):
    # A new MAE has its fixed positions at 0: its initialiser takes the empty table for one that was loaded.
    embeddings = model.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    model.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
  generator = torch.Generator().manual_seed(seed)
  for name, parameter in model.named_parameters():
    if parameter.requires_grad:
      mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
      parameter.data = mean + 0.2 * torch.randn(parameter.shape, generator=generator)
  return model.eval()


def make(kind: str, seed: int = 0, **config):
  """A random model of the class `kind`, such as "ViTModel"."""
  cls = getattr(transformers, kind)
  model = cls(cls.config_class(attn_implementation="eager", **config))
  return randomise(model, seed)


def record(model, size: tuple[int, int], images: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
  """Runs a model on random images, and says what came out where, in our names.

  Another size than the model was made for interpolates its positions.
  """
  generator = torch.Generator().manual_seed(seed)
  image = torch.randn(images, model.config.num_channels, *size, generator=generator)
  made_for = model.config.image_size
  made_for = (made_for, made_for) if isinstance(made_for, int) else tuple(made_for)
  kwargs = dict(interpolate_pos_encoding=size != made_for, output_attentions=True)
  result = {"image": image.permute(0, 2, 3, 1)}
  mae = hasattr(model, "decoder")
  if mae:
    patches = size[0] // model.config.patch_size * (size[1] // model.config.patch_size)
    result["noise"] = kwargs["noise"] = torch.rand(images, patches, generator=generator)

  def keep(name):
    def hook(module, inputs, output):
      output = output[0] if isinstance(output, tuple) else output
      result[name] = output.detach()

    return hook

  vit = getattr(model, "vit", model)
  hooks = [vit.embeddings.register_forward_hook(keep("embedded"))]
  hooks += [layer.register_forward_hook(keep(f"block_{i:02d}")) for i, layer in enumerate(vit.layers)]
  if mae:
    layers = model.decoder.decoder_layers
    hooks += [layer.register_forward_hook(keep(f"decoder/block_{i:02d}")) for i, layer in enumerate(layers)]
  hooks.append(vit.layernorm.register_forward_hook(keep("tokens")))
  with torch.no_grad():
    out = model(image, **kwargs)
    for i, weights in enumerate(out.attentions):
      result[f"block_{i:02d}/weights"] = weights
    if mae:
      result |= {"output": out.logits, "masked": out.mask.bool()}
      for normalised in (False, True):
        model.config.norm_pix_loss = normalised
        result[f"loss_{normalised}"] = model(image, **kwargs).loss
    else:
      result["output"] = out.logits if hasattr(out, "logits") else out.pooler_output
  for hook in hooks:
    hook.remove()
  return {name: value.numpy() for name, value in result.items()}


GOLDENS = {
  "vit_model": (
    dict(
      kind="ViTModel",
      hidden_size=24,
      num_hidden_layers=3,
      num_attention_heads=4,
      intermediate_size=40,
      image_size=20,
      patch_size=4,
      num_channels=2,
      pooler_output_size=9,
    ),
    [(20, 20), (28, 28), (12, 32)],
  ),
  "vit_classifier": (
    dict(
      kind="ViTForImageClassification",
      hidden_size=20,
      num_hidden_layers=3,
      num_attention_heads=2,
      intermediate_size=28,
      image_size=(12, 18),
      patch_size=3,
      num_channels=1,
      num_labels=7,
      hidden_act="gelu_new",
    ),
    [(12, 18)],
  ),
  "mae": (
    dict(
      kind="ViTMAEForPreTraining",
      hidden_size=24,
      num_hidden_layers=3,
      num_attention_heads=2,
      intermediate_size=40,
      image_size=20,
      patch_size=4,
      num_channels=3,
      decoder_hidden_size=16,
      decoder_num_hidden_layers=2,
      decoder_num_attention_heads=4,
      decoder_intermediate_size=28,
      mask_ratio=0.7,  # of 25 patches 7.5 stay visible: 7
    ),
    [(20, 20), (16, 28)],
  ),
}


def main():
  """Writes all of them."""
  for name, (config, sizes) in GOLDENS.items():
    model = make(**config)
    model.config.norm_pix_loss = False
    model.save_pretrained(HERE / name)
    expected = {}
    for i, size in enumerate(sizes):
      found = record(model, size, images=1 if i else 2)
      found = {key: value for key, value in found.items() if not (i and "weights" in key)}  # they are large
      expected |= {f"{size[0]}x{size[1]}/{key}": value for key, value in found.items()}
    np.savez(HERE / name / "expected.npz", **expected)


if __name__ == "__main__":
  main()
