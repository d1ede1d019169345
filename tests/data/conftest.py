"""What several files of this folder share."""

import pytest
from labelled_texts import write_vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))
