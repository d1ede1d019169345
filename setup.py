"""Packages `zoo` (models), `train` (training) and `configs` (experiments); the command `zoo`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

EXTRAS = {
  # JAX pins the libtpu that belongs to it: it drives a TPU, and it is the compiler that `zoo plan` uses without one.
  "tpu": ["jax[tpu]"],
  "plan": ["jax[tpu]"],
  "cuda": ["jax[cuda13]"],
  "cuda12": ["jax[cuda12]"],  # for NVIDIA drivers older than 580
  # The published implementations that the models are compared with.
  "parity": [
    "torch>=2.14",
    "torchvision>=0.29",
    "timm>=1.0.31",
    "transformers>=5.23",
    "scikit-learn>=1.9",
    "seqeval>=1.2",
  ],
  # Corpora that one machine is not enough for: `zoo prepare corpus/NAME --runner ...`.
  "beam": ["apache-beam>=2.77"],
  "notebooks": ["nbclient>=0.11", "nbformat>=5.10", "ipykernel>=7"],
  "test": ["pytest>=9.0", "pytest-xdist>=3.8"],
}

setup(
  name="transformer-zoo",
  version="0.1.0",
  description="Attention-based models in JAX and Flax, from attention to MAE, pretrained on TPUs",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_namespace_packages(include=["zoo*", "train*", "configs*"]),
  package_data={"train.datasets": ["**/*"]},
  install_requires=[
    "jax>=0.7.2",
    "flax>=0.11.2",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.24",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it without asking for it
    "grain>=0.2.15",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "packaging>=24.0",
    "scipy>=1.14",
    "opencv-python-headless>=4.11",
    "simplejpeg>=1.8.2",
    "pillow>=11.0",
    "matplotlib>=3.9",
    "safetensors>=0.5",
    "tensorboardX>=2.6.2.2",
    "rich>=13.7",
    "tokenizers>=0.21",
    "sacrebleu>=2.5",
  ],
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["zoo = train.cli:main"]},
)
