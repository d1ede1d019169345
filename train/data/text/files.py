"""Text files of a line a text, read exactly."""

from collections.abc import Iterator
from pathlib import Path


def lines(file: Path) -> Iterator[str]:
  """The lines of a UTF-8 file. Only a line feed ends a line: Unicode has other separators, which occur in texts.

  Raises:
    ValueError: a line that is not UTF-8; its number is named.
  """
  with file.open("rb") as raw:
    for number, line in enumerate(raw, 1):
      try:
        yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
      except UnicodeDecodeError as error:
        raise ValueError(f"{file}, line {number}, is not UTF-8: {error}") from error
