"""The vocabulary: aliases with their meaning, shared by every room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Params: TypeAlias = dict[str, Tensor]
"""Trainable parameters by name."""
Buffers: TypeAlias = dict[str, Tensor]
"""Module buffers by name (BatchNorm statistics, for example)."""
Grads: TypeAlias = dict[str, Tensor]
"""Gradients by parameter name, shaped like the parameters."""
Updates: TypeAlias = dict[str, Tensor]
"""What an optimizer adds to the parameters, shaped like them."""
Lambdas: TypeAlias = dict[str, Tensor]
"""L2 strengths by parameter name, each broadcastable to its parameter."""

# An optimizer's state is a NamedTuple, dict or tuple of tensors whose fields differ from optimizer
# to optimizer; Python's type system has no recursive bound for that, hence Any.
OptState: TypeAlias = Any
# A nested container of tensors: dict, list, tuple, NamedTuple, tensor or None. Same reason.
Tree: TypeAlias = Any

Array: TypeAlias = Tensor | npt.NDArray[np.generic]
Number: TypeAlias = float | int
Leaf: TypeAlias = Number | Array | Sequence[Number]
LambdaSpec: TypeAlias = Any
"""number | tensor | array | {pattern: number | tensor | array} | weights_only(...)"""

# A batch is (inputs, targets), but users bring dicts and objects of their own as well.
Batch: TypeAlias = Any
LossFn: TypeAlias = Callable[..., Tensor]
MetricFn: TypeAlias = Callable[..., Any]
Sweep: TypeAlias = Mapping[str, Any]
