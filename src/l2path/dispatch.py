"""Looking at torch's operations as they are called."""

from __future__ import annotations

import sys
from typing import Any

# What the modes of torch are kept out with; private, and pinned by the test of modules with compiled parts.
from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatch(TorchDispatchMode):
    """A mode that the compiler keeps out of, where there is one.

    torch sees to that by itself, and imports the compiler for it, which takes the better part of a second. Here it is
    kept out once somebody has imported it, as whoever has compiled a part of a module has.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Dispatch:
        """Return a mode of this class, or of one beside it whose operations the compiler does not read."""
        made: Dispatch = super().__new__(_left_alone(cls) if "torch._dynamo" in sys.modules else cls)
        return made

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


_MADE: dict[type[Dispatch], type[Dispatch]] = {}


def _left_alone(mode: type[Dispatch]) -> type[Dispatch]:
    if mode not in _MADE:
        kept_out = _disable_dynamo(mode.__torch_dispatch__, recursive=True)
        _MADE[mode] = type(mode.__name__, (mode,), {"__torch_dispatch__": kept_out})
    return _MADE[mode]
