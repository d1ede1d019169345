"""The TPUs that a plan can be made for: peak FLOP/s, HBM, bandwidths, clock."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Chip:
  """Peak rates and memory of a TPU chip.

  Attributes:
    kind: jax's `device_kind`, without "TPU ". peak_flops: bf16, a second. hbm: bytes.
    usable: bytes of HBM that the compiler gives to a program (as libtpu 0.0.52 reports).
    bandwidth: of HBM, bytes a second. links: bytes a second that a chip sends over all its links to other chips.
    clock: Hz.
    config: the `chip_config_name` with which `get_topology_desc` makes one device a chip.
  """

  kind: tuple[str, ...]
  peak_flops: float
  hbm: int
  usable: int
  bandwidth: float
  links: float
  clock: float
  config: str = ""


GB = 2**30  # XLA's "G"
# Google's pages give peak, HBM, bandwidth and the links of both directions together (cloud.google.com/tpu/docs, of each
# version). Clocks: the peak over two operations a cycle of 8 (v4, v5p) or 4 (v5e) matrix units of 128 x 128, or of 4 of
# 256 x 256 (v6e).
CHIPS = {
  "v4": Chip(("v4",), 275e12, 32 * GB, int(30.75 * GB), 1228e9, 300e9, 1.05e9, "megacore"),
  "v5e": Chip(("v5 lite", "v5e", "v5litepod"), 197e12, 16 * GB, int(15.75 * GB), 819e9, 200e9, 1.5e9),
  "v5p": Chip(("v5", "v5p"), 459e12, 95 * GB, int(95.73 * GB), 2765e9, 600e9, 1.75e9),
  "v6e": Chip(("v6 lite", "v6e"), 918e12, 32 * GB, int(31.24 * GB), 1640e9, 400e9, 1.75e9),
}


def chip(device: jax.Device) -> Chip | None:  # pyright: ignore[reportInvalidTypeForm]
  """The chip of a device, None if it is not in `CHIPS` (every CPU and GPU)."""
  kind = device.device_kind.removeprefix("TPU ")
  return next((c for c in CHIPS.values() if kind in c.kind), None)


def peak_flops(device: jax.Device) -> float | None:  # pyright: ignore[reportInvalidTypeForm]
  """The bf16 peak of a device in FLOP/s, None if it is not in `CHIPS`."""
  found = chip(device)
  return found and found.peak_flops
