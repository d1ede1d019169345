"""Packages `zoo` (models), `train` (training) and `configs` (experiments); the command `zoo`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda12]"],
  # The real TPU compiler, which needs no TPU: `zoo plan`.
  "plan": ["libtpu>=0.0.52"],
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
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=7.1",  # tensorflow-datasets imports it without asking for it
    "grain>=0.2.18",
    "ml_collections>=1.1",
    "numpy>=2.4",
    "scipy>=1.17",
    "opencv-python-headless>=5.0",
    "simplejpeg>=1.9",
    "pillow>=12.3",  # the newest that Apache Beam allows
    "matplotlib>=3.11",
    "safetensors>=0.8",
    "tensorboardX>=2.6.5",
    "rich>=15",
    "tokenizers>=0.23.3",
    "sacrebleu>=2.6",
  ],
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["zoo = train.cli:main"]},
)
