"""Notebooks run from top to bottom, with small sizes, and are committed without what they put out."""

import base64
import fnmatch
import glob
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
FILE = FOLDER / "mae_and_vit.ipynb"


class Shows(NamedTuple):
  """What a notebook leaves: how many plots, words of its output, and, in its folder of runs, runs and files."""

  plots: int
  words: tuple[str, ...]
  folder: str
  runs: tuple[str, ...]
  files: tuple[str, ...] = ()


NOTEBOOKS = {
  "mae_and_vit.ipynb": Shows(
    7,
    ("pretrained encoder", "from the MAE"),
    "notebook_small",
    ("mae", "fine_tuned", "scratch"),
    ("fine_tuned.safetensors",),
  ),
  "attention_to_transformer.ipynb": Shows(
    9,
    ("average of all", "third query", "beam   1.", "sentences/s"),
    "notebook_attention_small",
    ("kernel_regression", "distracted", "attentive", "transformer"),
  ),
  "bert_from_text.ipynb": Shows(
    7,
    ("whole words", "masked tokens of held-out chapters", "from scratch", "from BERT"),
    "notebook_bert_small",
    ("bert", "scratch", "fine_tuned"),
  ),
  "swin_and_dense_prediction.ipynb": Shows(
    9,
    ("padding needs 1.27", "97 × 131: (25, 33, 96)", "mIoU over", "128 × 256"),
    "notebook_swin_small",
    ("segmenter",),
  ),
}


def read(file=FILE):
  return nbformat.read(file, as_version=4)


def test_every_notebook_is_run():
  assert {*NOTEBOOKS} == {file.name for file in FOLDER.glob("*.ipynb")}


def plots(cell) -> list[np.ndarray]:
  encoded = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
  return [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in encoded]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_committed(name):
  notebook = read(FOLDER / name)
  nbformat.validate(notebook)
  assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
  for cell in notebook.cells:
    assert not cell.metadata
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None, cell.source


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(tmp_path, monkeypatch, name):
  monkeypatch.setenv("ZOO_NOTEBOOK_SMALL", "1")
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  notebook, wanted = read(FOLDER / name), NOTEBOOKS[name]
  NotebookClient(
    notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in code)
  drawing = [
    cell for cell in code if re.search(r"^(draw_rows\(|draw_panels\(|plots\.|registry\.|plt\.show)", cell.source, re.M)
  ]
  assert len(drawing) == wanted.plots
  for cell in code:
    found = plots(cell)
    assert len(found) == (cell in drawing), cell.source
    for plot in found:
      assert plot.shape[1] > 500 and len(np.unique(plot)) > 20, cell.source  # large, and not empty
  text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
  assert all(words in text for words in wanted.words)
  runs = tmp_path / "runs" / wanted.folder
  for run in wanted.runs:
    assert list((runs / run / "checkpoints").iterdir()), run
  for file in wanted.files:
    assert (runs / file).stat().st_size > 1e6


# ---- The first cell, where the project is not installed ----


def first_cell(file=FILE) -> str:
  return next(cell.source for cell in read(file).cells if cell.cell_type == "code")


def test_all_notebooks_begin_alike():
  assert {first_cell(FOLDER / name) for name in NOTEBOOKS} == {first_cell()}


class Asked(NamedTuple):
  """What the first cell installs by pip."""

  extras: str
  source: str


def run_first_cell(monkeypatch, folder, **environment) -> Asked:
  """Runs it as if the project were not installed."""
  commands, version = [], metadata.version

  def missing(name):
    if name == "transformer-zoo":
      raise metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.chdir(folder)
  for name in ("ZOO_REPO", "COLAB_JUPYTER_IP", "KMP_TARGET_PORT"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(metadata, "version", missing)
  monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
  exec(compile(first_cell(), "first cell", "exec"), {})
  (command,) = commands
  assert command[:4] == [sys.executable, "-m", "pip", "install"]
  name, _, source = command[-1].partition(" @ ")
  name, _, extras = name.partition("[")
  assert name == "transformer-zoo"
  return Asked(extras.removesuffix("]"), source)


def test_a_checkout_is_installed_from_its_own_folder(monkeypatch):
  assert run_first_cell(monkeypatch, FILE.parent).source == FILE.parents[1].as_uri()


@pytest.mark.parametrize(
  ("devices", "installed", "extras"),
  [
    ((), (), "train"),
    (("/dev/accel0",), (), "train,tpu"),
    (("/dev/vfio/0",), (), "train,tpu"),
    (("/dev/vfio/0",), ("libtpu",), "train"),  # a TPU runtime of Colab
    (("nvidia-smi",), (), "train,cuda"),
    (("nvidia-smi",), ("libtpu",), "train,cuda"),
    (("nvidia-smi",), ("libtpu", "jax_cuda12_plugin"), "train"),  # a GPU runtime of Colab
    (("nvidia-smi",), ("jax_cuda13_plugin",), "train"),
  ],
)
def test_jax_for_the_hardware_is_installed_where_it_is_missing(monkeypatch, devices, installed, extras):
  monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
  monkeypatch.setattr(shutil, "which", lambda name: name if name in devices else None)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
  assert run_first_cell(monkeypatch, FILE.parent).extras == extras


def test_a_package_loaded_before_its_update_is_reported(monkeypatch):
  monkeypatch.setattr(np, "__version__", "1.0")
  with pytest.raises(RuntimeError, match=r"^numpy had been loaded .* restart"):
    run_first_cell(monkeypatch, FILE.parent)


def test_elsewhere_the_repository_must_be_given(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="Set REPO"):
    run_first_cell(monkeypatch, tmp_path)
  address = "https://example.org/zoo.git"
  assert run_first_cell(monkeypatch, tmp_path, ZOO_REPO=address).source == f"git+{address}"


@pytest.mark.parametrize(
  "path",
  [
    "fileId=https%3A//github.com/someone/zoo/blob/main/notebooks/mae_and_vit.ipynb",
    "/github/someone/zoo/blob/main/n.ipynb",
  ],
)
def test_colab_names_the_repository_of_the_notebook(monkeypatch, tmp_path, path):
  class Sessions(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200 if self.path == "/api/sessions" else 404)
      self.end_headers()
      self.wfile.write(json.dumps([{"path": path, "notebook": {"path": path}}]).encode())

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Sessions) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
      asked = run_first_cell(
        monkeypatch, tmp_path, COLAB_JUPYTER_IP="127.0.0.1", KMP_TARGET_PORT=str(server.server_port)
      )
    finally:
      server.shutdown()
  assert asked.source == "git+https://github.com/someone/zoo"
