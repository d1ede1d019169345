"""Layers cost what Vaswani et al. 2017, table 1, states, counted in the programs that JAX traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import bench_complexity
from bench.bench_complexity import LAYERS, operations, path_length, sequential_steps

N, D, K = 12, 4, 5
# The exponents in the paper's formulas: operations in n, d and k, sequential steps and path length in n.
EXPONENTS = {
  "self-attention": (2, 1, 0, 0, 0),
  "recurrent": (1, 2, 0, 1, 1),
  "convolutional": (1, 2, 1, 0, 1),
  "restricted attention": (1, 1, 1, 0, 1),
}


@pytest.fixture(scope="module")
def measured():
  return bench_complexity.measure(width=16)


def test_slopes_are_the_exponents_of_the_table(measured):
  assert measured.keys() == EXPONENTS.keys()
  costs = ("operations in n", "operations in d", "operations in k", "sequential steps in n", "path length in n")
  for name, exponents in EXPONENTS.items():
    found = [measured[name]["slopes"][cost] for cost in costs]
    np.testing.assert_allclose(found, exponents, atol=0.02, err_msg=name)


def test_counts_by_hand():
  assert operations("self-attention", N, D, K) == 2 * N * N * D
  assert operations("recurrent", N, D, K) == 6 * N * D * D
  assert operations("convolutional", N, D, K) == K * N * D * D
  assert operations("restricted attention", N, D, K) == 2 * K * N * D
  assert [sequential_steps(name, N, D, K) for name in LAYERS] == [1, N, 1, 1]
  assert [path_length(name, N, K) for name in LAYERS] == [1, N - 1, 6, 6]  # 11 positions by 2 a step


@pytest.mark.parametrize("name", LAYERS)
def test_links_are_what_the_program_reads(name):
  x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
  jacobian = jax.jit(jax.jacobian(lambda x: LAYERS[name].run(x, K)))(x)  # [T, D, T, D]
  reads = np.asarray(jnp.any(jacobian != 0, (1, 3)))
  # All steps of the program together: one, or one after the other along the links.
  reached = np.eye(N, dtype=bool)
  for _ in range(sequential_steps(name, N, D, K)):
    reached |= LAYERS[name].links(N, K) @ reached
  np.testing.assert_array_equal(reads, reached)


def test_the_table_and_the_figure(measured, tmp_path):
  table = bench_complexity.table(measured)
  assert "| self-attention | n^2 d | 2.00 | 1.00 | 0.00 | 1 | 0.00 | 1 | 0.00 |" in table
  figure = bench_complexity.draw(measured, 16, 5)
  assert [axis.get_title() for axis in figure.axes] == ["operations", "sequential steps", "path length"]
  legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
  assert [texts[0] for texts in legends] == [f"self-attention: $n^{{{p}}}$" for p in ("2.00", "0.00", "0.00")]
  assert legends[1][1] == "recurrent: $n^{1.00}$"
  figure.savefig(tmp_path / "complexity.png")
