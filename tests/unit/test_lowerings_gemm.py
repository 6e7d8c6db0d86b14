"""The native products against torch's own: sizes, strides, numbers that are not finite, refusals, threads."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.lowerings_kernels import native_kernels

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70)
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    native_kernels()


def tiled(a: Tensor, b: Tensor) -> Tensor:
    name = "tiled_bmm" if a.dim() == 3 else "tiled_mm"
    product: Tensor = getattr(torch.ops.l2path, name)(a, b)
    return product


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# Ways for [count, rows, columns] to lie in memory.
LAYOUTS: dict[str, Callable[[int, int, int, torch.dtype, int], Tensor]] = {
    "contiguous": lambda s, m, n, dtype, seed: numbers(s, m, n, dtype=dtype, seed=seed),
    "transposed": lambda s, m, n, dtype, seed: numbers(s, n, m, dtype=dtype, seed=seed).mT,
    "sliced": lambda s, m, n, dtype, seed: numbers(s, m + 2, n + 3, dtype=dtype, seed=seed)[:, 1:-1, 2:-1],
    "sliced transposed": lambda s, m, n, dtype, seed: numbers(s, n + 2, m + 3, dtype=dtype, seed=seed)[:, 1:-1, 3:].mT,
    "every second": lambda s, m, n, dtype, seed: numbers(s, m, 2 * n, dtype=dtype, seed=seed)[..., ::2],
    "shared by the stack": lambda s, m, n, dtype, seed: numbers(m, n, dtype=dtype, seed=seed).expand(s, m, n),
    "one row": lambda s, m, n, dtype, seed: numbers(s, 1, n, dtype=dtype, seed=seed).expand(s, m, n),
    "one column": lambda s, m, n, dtype, seed: numbers(s, m, 1, dtype=dtype, seed=seed).expand(s, m, n),
    "stack last": lambda s, m, n, dtype, seed: numbers(m, n, s, dtype=dtype, seed=seed).permute(2, 0, 1),
}


def assert_product(found: Tensor, a: Tensor, b: Tensor) -> None:
    """Compare with exact products, summed in float64, by the bound of any order of summation (Higham 2002, 3.5)."""
    assert found.shape == (*a.shape[:-1], b.shape[-1])
    assert found.dtype == a.dtype
    assert found.is_contiguous()
    expected = torch.einsum("...ik,...kj->...ij", a.double(), b.double())
    size = torch.einsum("...ik,...kj->...ij", a.double().abs(), b.double().abs())
    bound = (a.shape[-1] + 1) * torch.finfo(a.dtype).eps * size
    wrong = ~((found.double() - expected).abs() <= bound)
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} elements, first at {wrong.nonzero()[0].tolist()}"


def test_the_comparison_can_fail() -> None:
    a, b = numbers(2, 3, 4, dtype=torch.float32), numbers(2, 4, 5, dtype=torch.float32)
    right = torch.bmm(a, b)
    assert_product(right, a, b)
    for change in (1e-4, math.nan):
        wrong = right.clone()
        wrong[1, 2, 3] += change
        with pytest.raises(AssertionError, match=r"1 of 30 elements, first at \[1, 2, 3\]"):
            assert_product(wrong, a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", SIZES)
def test_sizes(columns: int, dtype: torch.dtype) -> None:
    for rows, depth in itertools.product(SIZES[::2], SIZES[1::3]):
        a, b = numbers(2, rows, depth, dtype=dtype), numbers(2, depth, columns, dtype=dtype, seed=1)
        assert_product(tiled(a, b), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_strides(left: str, right: str, dtype: torch.dtype) -> None:
    for rows, depth, columns in ((1, 1, 1), (7, 5, 3), (13, 33, 1), (2, 19, 70), (40, 6, 23), (30, 270, 18)):
        a, b = LAYOUTS[left](3, rows, depth, dtype, 2), LAYOUTS[right](3, depth, columns, dtype, 3)
        assert_product(tiled(a, b), a, b)
        assert_product(tiled(a[1], b[2]), a[1], b[2])


@settings(max_examples=200)
@given(
    count=st.integers(1, 4),
    rows=st.integers(1, 70),
    depth=st.integers(1, 70),
    columns=st.integers(1, 70),
    left=st.sampled_from(sorted(LAYOUTS)),
    right=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
)
def test_any_product(
    count: int, rows: int, depth: int, columns: int, left: str, right: str, dtype: torch.dtype
) -> None:
    a, b = LAYOUTS[left](count, rows, depth, dtype, 4), LAYOUTS[right](count, depth, columns, dtype, 5)
    found, stock = tiled(a, b), torch.bmm(a, b)
    assert_product(found, a, b)
    assert found.stride() == stock.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 9, 100])
@pytest.mark.parametrize("left", ["contiguous", "transposed"])
@pytest.mark.parametrize("right", ["contiguous", "transposed"])
def test_a_depth_of_several_passes(left: str, right: str, columns: int, dtype: torch.dtype) -> None:
    a, b = LAYOUTS[left](1, 30, 1500, dtype, 6), LAYOUTS[right](1, 1500, columns, dtype, 7)
    assert_product(tiled(a, b), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (0, 0, 0, 0), (2, 30, 0, 1)])
def test_empty_sizes(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    count, rows, depth, columns = shape
    a, b = torch.ones(count, rows, depth, dtype=dtype), torch.ones(count, depth, columns, dtype=dtype)
    expected = torch.bmm(a, b)
    for left, right in itertools.product((a, a.mT.contiguous().mT), (b, b.mT.contiguous().mT)):
        found = tiled(left, right)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    if count:
        assert torch.equal(tiled(a[0], b[0]), expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 5, 16, 70])
@pytest.mark.parametrize("left", ["contiguous", "transposed"])
def test_numbers_that_are_not_finite_go_where_they_belong(left: str, columns: int, dtype: torch.dtype) -> None:
    a, b = LAYOUTS[left](2, 20, 11, dtype, 8).clone(memory_format=torch.preserve_format), torch.ones(2, 11, columns)
    b = b.to(dtype)
    a[0, 3, 4], a[0, 5, 0], a[1, 19, 10], a[1, 0, 0] = math.nan, math.inf, -math.inf, math.inf
    b[1, 0, 0] = 0  # times infinity
    found = tiled(a, b)
    assert found[0, 3].isnan().all()
    assert (found[0, 5] == math.inf).all()
    assert (found[1, 19] == -math.inf).all()
    assert found[1, 0, 0].isnan()
    assert (found[1, 0, 1:] == math.inf).all()
    assert found.isfinite().sum() == 2 * 20 * columns - 4 * columns
    b[0, 4, 0] = math.nan
    assert tiled(a, b)[0, :, 0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_and_small_numbers(dtype: torch.dtype) -> None:
    a, b = numbers(2, 9, 17, dtype=dtype), numbers(2, 17, 21, dtype=dtype, seed=1)
    scale = 2.0**60 if dtype == torch.float32 else 2.0**500
    # Powers of two change no rounding.
    assert torch.equal(tiled(a * scale, b), tiled(a, b) * scale)
    assert torch.equal(tiled(a, b / scale), tiled(a, b) / scale)
    assert not tiled(a.abs() * scale, b.abs() * scale**2).isfinite().any()
    assert torch.equal(tiled(-torch.zeros(1, 3, 1, dtype=dtype), b[:1, :1].abs()), torch.zeros(1, 3, 21, dtype=dtype))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 5, 6), r"\[2, 3, 4\] and b \[2, 5, 6\]; expected as many columns of a as"),
        (torch.ones(2, 3, 4), torch.ones(3, 4, 6), "expected stacks of the same length"),
        (torch.ones(2, 3, 4), torch.ones(4, 6), r"expected \[stack, rows, depth\] and"),
        (torch.ones(3, 4), torch.ones(2, 4, 6), r"expected \[rows, depth\] and"),
        (torch.ones(3), torch.ones(3), r"expected \[rows, depth\] and"),
        (torch.ones(1, 3, 4), torch.ones(1, 4, 6).double(), "expected both float32 or both float64"),
        (torch.ones(3, 4).int(), torch.ones(4, 6).int(), "expected both float32 or both float64"),
        (torch.ones(3, 4).half(), torch.ones(4, 6).half(), "expected both float32 or both float64"),
    ],
)
def test_refusals(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        tiled(a, b)


@pytest.mark.parametrize("dims", [2, 3])
def test_torch_knows_what_it_needs_to(dims: int) -> None:
    a, b = numbers(2, 3, 4, dtype=torch.float32), numbers(2, 5, 4, dtype=torch.float32).mT
    op: Any = torch.ops.l2path.tiled_bmm.default if dims == 3 else torch.ops.l2path.tiled_mm.default
    operands = (a, b) if dims == 3 else (a[0], b[0])
    torch.library.opcheck(op, operands, test_utils=("test_schema", "test_faketensor"))
    # Without this inductor may copy operands that are transposed.
    assert torch.Tag.flexible_layout in op.tags


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_change_nothing(count: int) -> None:
    # So much work that it is shared: by matrices, or by blocks of rows where there are fewer matrices than threads.
    a, b = numbers(count, 301, 200, dtype=torch.float32), numbers(count, 90, 200, dtype=torch.float32, seed=1).mT
    torch.set_num_threads(1)
    alone = tiled(a, b)
    torch.set_num_threads(3)
    assert torch.equal(tiled(a, b), alone)
    assert_product(alone, a, b)


def test_python_threads_do_not_disturb_each_other() -> None:
    operands = [
        (numbers(3, 40, 30, dtype=d, seed=i), numbers(3, 21, 30, dtype=d, seed=9).mT) for i, d in enumerate(DTYPES)
    ]
    expected = [tiled(a, b) for a, b in operands]
    wrong: list[int] = []

    def work(which: int) -> None:
        torch.set_num_threads(1)
        for _ in range(200):
            if not torch.equal(tiled(*operands[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
