"""One experiment a file: `get_config()`; the docstring says command, cost and expected result."""
