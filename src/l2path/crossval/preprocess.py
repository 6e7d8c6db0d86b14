"""Preprocessing that is fitted on training rows only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError

Transform = Callable[[Any], Any]


def check_preprocess(preprocess: object) -> None:
    """Refuse what is neither a transformer nor a function."""
    fits = callable(getattr(preprocess, "fit", None)) and callable(getattr(preprocess, "transform", None))
    if preprocess is not None and (isinstance(preprocess, type) or not (fits or callable(preprocess))):
        made = f"the class {preprocess.__name__}" if isinstance(preprocess, type) else repr(preprocess)
        raise ArgumentError(
            "preprocess",
            got=made,
            expected="a transformer with fit and transform, or a function that is given the training inputs and "
            "returns the function to apply",
            remedy="pass for example sklearn.preprocessing.StandardScaler()",
        )


def fitted(preprocess: Any, inputs: Any) -> Transform:
    """Return what was learned from these inputs, as a function of inputs.

    A transformer is copied before it is fitted, and is given and gives NumPy arrays; what comes out is a tensor of the
    inputs' dtype, on their device.
    """
    if not callable(getattr(preprocess, "fit", None)):
        found = preprocess(inputs)
        if not callable(found):
            raise ArgumentError(
                "preprocess",
                got=f"a function that returns a {type(found).__name__}",
                expected="one that is given the training inputs and returns the function to apply",
                remedy="write def preprocess(train): mean = train.mean(0); return lambda inputs: inputs - mean",
            )
        transform: Transform = found
        return transform
    if not isinstance(inputs, Tensor):
        raise ArgumentError(
            "preprocess",
            got=f"a transformer for inputs that are a {type(inputs).__name__}",
            expected="inputs that are one tensor or array",
            remedy="pass a function, which is given the inputs as they are",
        )
    own = copy.deepcopy(preprocess)
    own.fit(inputs.detach().cpu().numpy())

    def apply(values: Any) -> Tensor:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        out = own.transform(array)
        out = out.toarray() if hasattr(out, "toarray") else np.asarray(out)
        return torch.as_tensor(out).to(inputs.device, inputs.dtype)

    return apply
