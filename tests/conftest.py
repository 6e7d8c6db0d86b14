"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ["L2PATH_REMEMBER"] = "0"  # what was measured before, in other runs, decides nothing here


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compile anew, and leave nothing of it to other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
