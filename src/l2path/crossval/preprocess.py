"""Preprocessing that is fitted on training rows only."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2path.batches import check_nan
from l2path.data import Place
from l2path.errors import ArgumentError
from l2path.trees import map_tensors, tensor_leaves, tree_map

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


def preprocessed(preprocess: Any, inputs: Any, targets: Any, train: Tensor, place: Place) -> tuple[Transform, Any]:
    """Learn from the training rows, and return the transform with the inputs of all rows transformed.

    Parameters
    ----------
    preprocess : transformer or function
    inputs, targets : trees of tensors, [n, ...]
        Of all rows.
    train : Tensor, [n_train]
        Positions of the rows to learn from.
    place : Place
        Where arrays become tensors.

    Raises
    ------
    ArgumentError
        If it fails, or gives NaN or another number of rows.
    """
    if inputs is None:
        raise ArgumentError(
            "preprocess",
            got="data that do not come apart into inputs and targets in memory",
            expected="data=(inputs, targets), tensors or arrays, with loss_fn(outputs, targets)",
            remedy="preprocess in the Dataset or in the module, where nothing is learned from held-out rows",
        )
    own_inputs, own_targets = map_tensors(lambda x: x[train.to(x.device)], (inputs, targets))
    try:
        transform = fitted(preprocess, own_inputs, own_targets, place)
        done = transform(inputs)
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(
            "preprocess",
            got=f"{preprocess!r}, which fails on a fold's {len(train)} training rows: {type(error).__name__}: {error}",
            expected="what can be learned from these rows and applied to all of them",
            remedy="call its fit and transform on a part of the inputs and mend what it says",
        ) from error
    rows = {len(x) if x.ndim else 0 for x in tensor_leaves(done)}
    if rows != {len(x) for x in tensor_leaves(inputs)}:
        raise ArgumentError(
            "preprocess",
            got=f"tensors of {sorted(rows)} rows" if rows else "no tensors",
            expected="a row for each row of the inputs",
            remedy="drop rows before the call, for all folds alike",
        )
    check_nan(done, "preprocess")
    return transform, done


def fitted(preprocess: Any, inputs: Any, targets: Any, place: Place) -> Transform:
    """Return what was learned from these rows, as a function of inputs.

    A transformer is copied before it is fitted, and is given and gives NumPy arrays. Arrays of floats become tensors of
    the module's dtype, as they do in data.
    """
    learned = _learned(preprocess, inputs, targets)
    placed = partial(tree_map, partial(_placed, place=place))
    return lambda values: placed(learned(placed(values)))


def _learned(preprocess: Any, inputs: Any, targets: Any) -> Transform:
    if not callable(getattr(preprocess, "fit", None)):
        found = preprocess(inputs)
        if not callable(found):
            raise ArgumentError(
                "preprocess",
                got=f"a function that returns a {type(found).__name__}",
                expected="one that is given the training inputs and returns the function to apply",
                remedy="write def preprocess(train): mean = train.mean(0); return lambda inputs: inputs - mean",
            )
        learned: Transform = found
        return learned
    if not isinstance(inputs, Tensor):
        raise ArgumentError(
            "preprocess",
            got=f"a transformer for inputs that are a {type(inputs).__name__}",
            expected="inputs that are one tensor or array",
            remedy="pass a function, which is given the inputs as they are",
        )
    own = copy.deepcopy(preprocess)
    arguments = [as_array(inputs)]
    if isinstance(targets, Tensor) and _takes(own.fit, 2):  # as scikit-learn's do: a selection of features needs them
        arguments.append(as_array(targets))
    own.fit(*arguments)
    return lambda values: own.transform(as_array(values))


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a NumPy array, which knows no bfloat16."""
    tensor = tensor.detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _placed(leaf: Any, place: Place) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.detach().to(place.device)
    array = leaf.toarray() if hasattr(leaf, "toarray") else np.asarray(leaf)  # of a sparse matrix
    return torch.tensor(array, dtype=place.dtype if array.dtype.kind == "f" else None, device=place.device)
