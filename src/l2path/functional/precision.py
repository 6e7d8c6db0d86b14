"""How exactly a computation is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from l2path.dispatch import Dispatch
from l2path.trees import tensor_leaves


def coarsest_dtype(call: Callable[[], object]) -> torch.dtype:
    """Return the least exact floating dtype of what operations return while ``call`` runs, as under autocast.

    Examples
    --------
    >>> coarsest_dtype(lambda: torch.ones(2).to(torch.bfloat16).double())
    torch.bfloat16
    """
    watching = _Watching()
    with watching:
        call()
    return watching.coarsest


class _Watching(Dispatch):
    """Keeps the dtype with the largest rounding error."""

    def __init__(self) -> None:
        super().__init__()
        self.coarsest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensor_leaves(result):
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).eps > torch.finfo(self.coarsest).eps:
                self.coarsest = tensor.dtype
        return result
