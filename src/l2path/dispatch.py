"""Looking at torch's operations as they are called."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatch(TorchDispatchMode):
    """A mode for programs that are not compiled.

    torch would keep the compiler out of each call of ``__torch_dispatch__``, and import it for that, which takes the
    better part of a second.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
