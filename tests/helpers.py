"""Comparisons that the whole suite shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


# A tree is a nested container of whatever is compared, hence Any.
def assert_trees_close(
    actual: Any, expected: Any, rtol: float = 1e-10, *, check_dtype: bool = False, where: str = "tree"
) -> None:
    """Assert that two trees agree in structure, shapes and, leaf by leaf, in values.

    Parameters
    ----------
    actual, expected : nested dict, list, tuple, NamedTuple, None, tensor, array or number
        What came, and what should have.
    rtol : float
        Bound on ``max|a - b| / max(1e-30, max|b|)`` over each leaf; 0 asks for equality. NaN is close
        to nothing, not even to NaN.
    check_dtype : bool
        Whether leaves must agree in dtype too; they have to be tensors or arrays then.
    where : str
        How messages call the tree.

    Raises
    ------
    AssertionError
        Naming the first leaf that differs.

    Examples
    --------
    >>> assert_trees_close({"w": torch.ones(2)}, {"w": np.ones(2)})
    """
    if isinstance(expected, Mapping):
        assert isinstance(actual, Mapping), f"{where}: {type(actual).__name__} instead of a mapping"
        assert set(actual) == set(expected), f"{where}: keys {sorted(actual)} instead of {sorted(expected)}"
        for key in expected:
            assert_trees_close(actual[key], expected[key], rtol, check_dtype=check_dtype, where=f"{where}[{key!r}]")
    elif isinstance(expected, (tuple, list)):
        assert isinstance(actual, (tuple, list)), f"{where}: {type(actual).__name__} instead of a sequence"
        assert len(actual) == len(expected), f"{where}: {len(actual)} entries instead of {len(expected)}"
        fields = getattr(expected, "_fields", range(len(expected)))
        assert list(getattr(actual, "_fields", range(len(actual)))) == list(fields), f"{where}: other fields"
        for field, a, b in zip(fields, actual, expected, strict=True):
            assert_trees_close(a, b, rtol, check_dtype=check_dtype, where=f"{where}.{field}")
    elif expected is None:
        assert actual is None, f"{where}: {actual!r} instead of None"
    else:
        _assert_leaves_close(actual, expected, rtol, check_dtype, where)


# A leaf is a tensor, an array of any library that numpy reads, or a number.
def _assert_leaves_close(actual: Any, expected: Any, rtol: float, check_dtype: bool, where: str) -> None:
    assert not isinstance(actual, (Mapping, tuple, list, type(None))), f"{where}: no leaf"
    if check_dtype:
        assert actual.dtype == expected.dtype, f"{where}: {actual.dtype} instead of {expected.dtype}"
    a, b = _wide(actual), _wide(expected)
    assert a.shape == b.shape, f"{where}: shape {a.shape} instead of {b.shape}"
    if b.size == 0:
        return
    error = float(np.abs(a - b).max()) / max(1e-30, float(np.abs(b).max()))
    # Written so that NaN fails.
    assert error <= rtol, f"{where}: relative difference {error:.3g} is beyond {rtol:.3g}"


def _wide(leaf: Any) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().resolve_conj().cpu()
        leaf = leaf.to(torch.complex128 if leaf.is_complex() else torch.float64).numpy()
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
