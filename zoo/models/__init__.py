"""One family a file: `VARIANTS`, `Config`, `inputs` and `Model`."""
