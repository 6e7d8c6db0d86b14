"""Lambda specs: from what a user writes to one tensor for each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional
from l2path.penalty.names import Names, describe, match
from l2path.types import Lambdas, LambdaSpec


@dataclass(frozen=True)
class WeightsOnly:
    """A spec that leaves biases and normalisation layers free; see :func:`weights_only`."""

    spec: LambdaSpec


def weights_only(spec: LambdaSpec) -> WeightsOnly:
    """Penalise weights only: biases and the parameters of normalisation layers get 0.

    Decided on module types and names (``l2path.lambda_table`` prints the outcome), so that it needs a module
    and not just a dict of parameters.

    Parameters
    ----------
    spec : number, tensor, or {pattern: number or tensor}
        Any lambda spec, with or without an axis of lambdas.

    Returns
    -------
    WeightsOnly
        To be used wherever a spec is taken.

    Examples
    --------
    >>> expand_lambdas(nn.Linear(2, 1), weights_only(0.1))
    {'weight': tensor(0.1000), 'bias': tensor(0.)}
    """
    return WeightsOnly(spec)


def expand_lambdas(
    module_or_params: nn.Module | Functional | Names | Mapping[str, Tensor],
    spec: LambdaSpec,
    *,
    argument: str = "lambdas",
) -> Lambdas:
    """Return one L2 strength for each trainable parameter, in the smallest broadcastable form.

    Parameters
    ----------
    module_or_params : nn.Module or dict of str to Tensor
        Whose parameters to name.
    spec : number, tensor, {pattern: number or tensor}, or weights_only(...)
        A leaf is a number, 0-d, or broadcasts to its parameter (element-wise strengths). A pattern is a name
        or a glob; exact names beat globs, ``"*"`` is the default; what no pattern names gets 0.
    argument : str
        What to call ``spec`` in errors.

    Returns
    -------
    dict of str to Tensor
        By parameter name, in the parameter's real dtype but at least float32, on its device.

    Raises
    ------
    ArgumentError
        For a pattern that matches nothing or overlaps another one, a shape that does not broadcast, and
        values that are negative or not finite (values cannot be read inside ``vmap`` or ``torch.compile``,
        where that one check is left out).

    Examples
    --------
    >>> expand_lambdas(nn.Linear(2, 1), {"weight": 0.5})
    {'weight': tensor(0.5000), 'bias': tensor(0.)}
    """
    names = describe(module_or_params)
    leaves = leaf_by_parameter(names, spec, argument)
    return {name: as_strength(leaves.get(name, 0.0), names, name, argument) for name in names.params}


def refuse_bare_vector(names: Names, spec: LambdaSpec, argument: str) -> None:
    """Refuse a row of numbers for several parameters: it is several lambdas, and not one for each column."""
    inner = spec.spec if isinstance(spec, WeightsOnly) else spec
    bare = isinstance(inner, (Tensor, np.ndarray)) or (isinstance(inner, Sequence) and not isinstance(inner, str))
    ndim = inner.ndim if isinstance(inner, Tensor) else np.ndim(inner) if bare else 0
    if ndim != 1 or len(names.params) < 2:
        return
    raise ArgumentError(
        argument,
        got=f"shape {list(np.shape(inner))}, for all parameters at once",
        expected="one number, or a dict that says which parameter has element-wise strengths",
        remedy="many lambdas at once go to batch_train (or through torch.func.vmap); write {'name': tensor} for "
        "element-wise strengths; lambda_table takes a path with members=L",
    )


def leaf_by_parameter(names: Names, spec: LambdaSpec, argument: str) -> dict[str, Any]:
    """Return the leaf that decides each parameter; parameters without one are left out."""
    if isinstance(spec, WeightsOnly):
        free = require_exempt(names, argument)
        inner = leaf_by_parameter(names, spec.spec, argument)
        return {name: leaf for name, leaf in inner.items() if name not in free}
    if isinstance(spec, Mapping):
        return {name: spec[pattern] for name, pattern in match(names, list(spec), argument).items()}
    return dict.fromkeys(names.params, spec)


def require_exempt(names: Names, argument: str) -> dict[str, str]:
    """Return what "weights only" leaves free; it cannot be known of a bare dict of parameters."""
    if names.exempt is None:
        raise ArgumentError(
            argument,
            got="weights_only(...) with a dict of parameters",
            expected="a module, whose layer types say what is a weight",
            remedy="pass the module, or name the parameters in a dict of patterns",
        )
    return names.exempt


def strength_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's lambda: real, and at least float32."""
    dtype = param.dtype.to_real() if param.dtype.is_complex else param.dtype
    return torch.promote_types(dtype, torch.float32)


def as_strength(leaf: Any, names: Names, name: str, argument: str, members: int | None = None) -> Tensor:
    """Check one leaf against its parameter and return it as a tensor.

    Parameters
    ----------
    leaf : number, tensor, array or sequence
        Broadcastable to the parameter, or, where ``members`` is given, 0-d (shared) or with a leading axis of
        that length (1: shared) before what broadcasts.
    members : int or None
        Length L of the lambda axis; None where there is none.

    Returns
    -------
    Tensor
        Without ``members`` the leaf itself; with it ``[L, ...]``, a view where the leaf is shared.
    """
    param = names.params[name]
    dtype = strength_dtype(param)
    value = to_tensor(leaf, dtype, param.device, f"{argument}[{name!r}]" if name else argument)
    check_strengths(value, f"{argument} (parameter {name!r})")
    if members is None:
        inner = value.shape
    else:
        value = value.expand(members) if value.ndim == 0 else value
        if value.shape[0] not in (1, members):
            raise ArgumentError(
                f"{argument} (parameter {name!r})",
                got=f"shape {list(value.shape)}",
                expected=f"0-d, or a leading axis of length L = {members} (an element-wise strength that all "
                "members share is [1, *shape])",
                remedy="give every leaf one value for each lambda of the path",
            )
        value = value.expand(members, *value.shape[1:])
        inner = value.shape[1:]
    if not _broadcasts(inner, param.shape):
        raise ArgumentError(
            f"{argument} (parameter {name!r})",
            got=f"shape {list(inner)}" + ("" if members is None else " after the lambda axis"),
            expected=f"a shape that broadcasts to the parameter's {list(param.shape)}",
            remedy="use a number, or one value for each element"
            + ("; many lambdas at once are batch_train's, not one step's" if members is None else ""),
        )
    return value


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    # torch.broadcast_shapes imports sympy.
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def to_tensor(leaf: Any, dtype: torch.dtype, device: torch.device, argument: str) -> Tensor:
    """Return a leaf as a real tensor, or say what it is instead."""
    kind = type(leaf).__name__
    if isinstance(leaf, Tensor):
        if leaf.dtype.is_complex or leaf.dtype == torch.bool:
            kind = f"a tensor of {leaf.dtype}"
        elif leaf.device != device and leaf.ndim > 0:
            raise ArgumentError(
                argument,
                got=f"a tensor on {leaf.device}",
                expected=f"the parameter's device, {device}",
                remedy=f"move it: .to({str(device)!r})",
            )
        else:
            return leaf.to(device=device, dtype=dtype)
    elif isinstance(leaf, (int, float, np.integer, np.floating)) and not isinstance(leaf, bool):
        return torch.tensor(float(leaf), dtype=dtype, device=device)
    elif isinstance(leaf, (np.ndarray, Sequence)) and not isinstance(leaf, str):
        array = np.asarray(leaf)
        if array.dtype.kind in "iuf":
            return torch.as_tensor(array.astype(np.float64), device=device).to(dtype)
        kind = f"{kind} of {array.dtype}"
    raise ArgumentError(
        argument, got=kind, expected="a number, or a real tensor or array", remedy="convert it to numbers"
    )


def check_strengths(value: Tensor, argument: str) -> None:
    """Refuse negative and non-finite strengths wherever their values can be read."""
    if torch.compiler.is_compiling():
        return
    try:
        good = bool((torch.isfinite(value) & (value >= 0)).all())
    except RuntimeError:  # inside vmap values cannot be read; there the caller checks before
        return
    if not good:
        bad = value[~(torch.isfinite(value) & (value >= 0))].flatten()[:3]
        raise ArgumentError(
            argument,
            got=f"the values {', '.join(f'{float(b):.6g}' for b in bad)}",
            expected="finite values >= 0",
            remedy="use 0 for no penalty; check the grid for NaN",
        )
