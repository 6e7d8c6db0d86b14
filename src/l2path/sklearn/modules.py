"""The module of an estimator: the default one, and what a user's factory makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from l2path.errors import ArgumentError, nearest

# The names that scikit-learn's MLPs give them.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "identity": nn.Identity,
}
PREDICT_ROWS = 4096  # at a time

Factory = Callable[[int, int], nn.Module]


def mlp(n_features: int, n_outputs: int, hidden_layer_sizes: Sequence[int], activation: str) -> nn.Module:
    """Return a multilayer perceptron.

    Examples
    --------
    >>> mlp(3, 1, (5,), "tanh")
    Sequential(
      (0): Linear(in_features=3, out_features=5, bias=True)
      (1): Tanh()
      (2): Linear(in_features=5, out_features=1, bias=True)
    )
    """
    layers: list[nn.Module] = []
    width = n_features
    for size in hidden_layer_sizes:
        layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


def check_module(module: object, hidden_layer_sizes: Any, activation: object) -> None:
    """Refuse parameters that make no module, before anything is trained."""
    if module is not None:
        if isinstance(module, nn.Module) or not callable(module):
            raise ArgumentError(
                "module",
                got=f"a {type(module).__name__}",
                expected="a function (n_features, n_outputs) -> nn.Module, or None for a multilayer perceptron",
                remedy="write module=lambda n_features, n_outputs: Net(n_features, n_outputs); every fit makes a new "
                "one, with the widths of its data",
            )
        return
    sizes = hidden_layer_sizes if isinstance(hidden_layer_sizes, (Sequence, np.ndarray)) else [hidden_layer_sizes]
    if isinstance(sizes, str) or not all(isinstance(s, (int, np.integer)) and s >= 1 for s in sizes):
        raise ArgumentError(
            "hidden_layer_sizes",
            got=repr(hidden_layer_sizes),
            expected="whole numbers >= 1, one for each hidden layer",
            remedy="use for example (64,), or () for a linear model",
        )
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            "activation",
            got=repr(activation),
            expected=f"one of {list(ACTIVATIONS)}",
            remedy=nearest(str(activation), ACTIVATIONS),
        )


def make_module(
    module: Factory | None,
    hidden_layer_sizes: Any,
    activation: str,
    n_features: int,
    n_outputs: int,
    dtype: torch.dtype,
) -> nn.Module:
    """Call the factory, or make the default; the module is cast to the dtype of the inputs."""
    if module is None:
        sizes = [int(size) for size in np.atleast_1d(np.asarray(hidden_layer_sizes, dtype=np.int64))]
        return mlp(n_features, n_outputs, sizes, activation).to(dtype)
    made = module(n_features, n_outputs)
    if not isinstance(made, nn.Module):
        raise ArgumentError(
            "module",
            got=f"a function that returns a {type(made).__name__}",
            expected="one that returns an nn.Module",
            remedy="write module=lambda n_features, n_outputs: Net(n_features, n_outputs)",
        )
    return made.to(dtype)


def outputs_of(module: nn.Module, inputs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return a module's outputs ``[n, n_outputs]`` on the rows of an array, in the dtype of the module."""
    parameter = next(module.parameters())
    parts = []
    with torch.no_grad():
        for start in range(0, len(inputs), PREDICT_ROWS):
            rows = torch.tensor(inputs[start : start + PREDICT_ROWS], dtype=parameter.dtype, device=parameter.device)
            parts.append(module(rows).cpu().numpy())
    return np.concatenate(parts)
