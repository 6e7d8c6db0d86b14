"""The native LSTM and GRU operations against the plain ones, those against autograd, and functions of the gates."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from l2path.lowerings import plain as formulas
from l2path.lowerings import recurrent
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels, rewritten

DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 40)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    native_kernels()


def numbers(*shape: int, seed: int, dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    """Numbers of a size that gates do not saturate at, laid out in memory in one of several ways."""

    def made(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed)) / 2

    if layout == "contiguous":
        return made(*shape)
    if layout == "transposed":
        return made(*shape[:-2], shape[-1], shape[-2]).mT if len(shape) > 1 else made(*shape)
    if layout == "sliced":
        return made(*shape[:-1], shape[-1] + 5)[..., 2:-3]
    if layout == "every second":
        return made(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "reversed axes":
        return made(*reversed(shape)).permute(*reversed(range(len(shape))))
    assert layout == "shared"  # by everything but the last axis
    return made(shape[-1]).expand(shape)


LAYOUTS = ("contiguous", "transposed", "sliced", "every second", "reversed axes", "shared")


def operands(
    name: str, lead: tuple[int, ...], steps: int, batch: int, width: int, dtype: torch.dtype, layout: str = "contiguous"
) -> list[Tensor]:
    """Operands of an operation by name."""
    state, states = (batch, width), (steps + 1, batch, width)
    wide, gates = (steps, batch, 4 * width), (steps, batch, 3 * width)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "lstm": [wide, (4 * width, width), state, state],
        "lstm_backward": [wide, states, (4 * width, width), states, state],
        "gru": [gates, (3 * width, width), (width,), state],
        "gru_backward": [wide, states, (3 * width, width), states],
    }
    return [numbers(*lead, *s, seed=i, dtype=dtype, layout=layout) for i, s in enumerate(shapes[name])]


def plain(name: str, given: list[Tensor]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = getattr(torch.ops.l2path, name)(*given)
    return found


def native(name: str, given: list[Tensor]) -> tuple[Tensor, ...]:
    return plain(f"native_{name}", given)


def assert_same(name: str, given: list[Tensor]) -> None:
    found, wanted = native(name, given), plain(name, given)
    assert_trees_close(list(found), list(wanted), TOLERANCE[given[0].dtype], check_dtype=True)
    assert all(x.is_contiguous() for x in found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_sizes(name: str, width: int, dtype: torch.dtype) -> None:
    for steps, batch in itertools.product((1, 2, 5), (1, 3, 13)):
        assert_same(name, operands(name, (2,), steps, batch, width, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_strides(name: str, layout: str, dtype: torch.dtype) -> None:
    for width in (3, 19):
        given = operands(name, (2,), 3, 4, width, dtype, layout)
        assert_same(name, given)
        # one operand at a time, among contiguous ones
        for i in range(len(given)):
            assert_same(name, [x if i == j else x.contiguous() for j, x in enumerate(given)])


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_any_leading_axes(name: str, lead: tuple[int, ...]) -> None:
    for layout in ("contiguous", "reversed axes"):
        assert_same(name, operands(name, lead, 3, 2, 5, torch.float64, layout))


@pytest.mark.parametrize(
    ("lead", "steps", "batch", "width"), [((0,), 2, 3, 4), ((2,), 0, 3, 4), ((2,), 2, 0, 4), ((), 0, 0, 1)]
)
@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_empty(name: str, lead: tuple[int, ...], steps: int, batch: int, width: int) -> None:
    given = operands(name, lead, steps, batch, width, torch.float32)
    for a, b in zip(native(name, given), plain(name, given), strict=True):
        assert torch.equal(a, b)


def units_off(found: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of numbers of this size."""
    return float(((found.double() - exact) / exact).abs().max()) / torch.finfo(found.dtype).eps


def gates_of(x: Tensor, width: int = 64) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of numbers by the native kernel: a step without a past, of rows of this width."""
    rows = x.view(-1, width)
    zeros = torch.zeros_like(rows)
    _, _, gates = native("lstm", [rows.repeat(1, 4)[None], x.new_zeros(4 * width, width), zeros, zeros])
    return gates[0, :, :width].flatten(), gates[0, :, 2 * width : 3 * width].flatten()


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_gates_are_right_to_two_units_in_the_last_place(dtype: torch.dtype) -> None:
    largest = 87.0 if dtype == torch.float32 else 34.0  # where float64 is what they are compared with
    x = torch.cat([torch.linspace(-largest, largest, 64 * 500), torch.logspace(-30, 1, 64 * 250)]).to(dtype)
    x = torch.cat([x, -x])
    exact = x.double()
    bound = 2.0 if dtype == torch.float32 else 4.0  # torch's own functions are not exact
    for width in (1, 2, 4, 8, 64):  # vectors of all sizes
        sigmoid, tanh = gates_of(x, width)
        assert units_off(sigmoid, 1 / (1 + (-exact).exp())) < bound
        assert units_off(tanh, exact.tanh()) < bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0, 750.0, -750.0] + [1.0] * 55, dtype=dtype)
    sigmoid, tanh = gates_of(x)
    assert sigmoid[0].isnan()
    assert tanh[0].isnan()
    assert sigmoid[1:9].tolist() == [1, 0, 1, 0, 0.5, 0.5, 1, 0]
    assert tanh[1:9].tolist() == [1, -1, 1, -1, 0, 0, 1, -1]
    # A row with a NaN leaves the others alone, and it never comes back.
    for name in ("lstm", "gru"):
        given = operands(name, (), 4, 3, 5, dtype)
        given[0][1, 2, 0] = math.nan
        states = native(name, given)[0]
        assert states[:, :2].isfinite().all()
        assert states[:2].isfinite().all()
        assert states[2:, 2].isnan().any(-1).all()
        assert states[3:, 2].isnan().all()


@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_refusals(name: str) -> None:
    given = operands(name, (2,), 3, 4, 5, torch.float32)
    for i in range(1, len(given)):
        for wrong in (given[i][:1], given[i][..., :-1], given[i].double(), given[i][0]):
            changed = [wrong if i == j else x for j, x in enumerate(given)]
            with pytest.raises(RuntimeError, match=rf"l2path::native_{name}: operand {i} is \[.*; expected \["):
                native(name, changed)
    for wrong in (given[0][0, 0], given[0].half(), given[0][..., :-1]):
        with pytest.raises(RuntimeError, match=rf"l2path::native_{name}: the first operand is \["):
            native(name, [wrong, *given[1:]])


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", recurrent.SCHEMAS)
def test_torch_knows_what_it_needs_to(name: str, native: bool) -> None:
    op = getattr(torch.ops.l2path, f"native_{name}" if native else name).default
    for layout in ("contiguous", "reversed axes"):
        given = tuple(operands(name, (2,), 3, 4, 5, torch.float32, layout))
        torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


# Of all operands, as autograd finds them through the plain forward operations.
def test_derivatives_of_the_lstm() -> None:
    given = [x.requires_grad_() for x in operands("lstm", (2,), 3, 2, 3, torch.float64)]
    z, w, h, c = given
    states, cells, _ = formulas.lstm(z, w, h, c)
    dh, dc = numbers(*states.shape, seed=8, dtype=z.dtype), numbers(*c.shape, seed=9, dtype=z.dtype)
    wanted = torch.autograd.grad((states * dh).sum() + (cells[:, -1] * dc).sum(), given)
    found, last = recurrent.lstm(z, w, h, c)
    assert_trees_close([found.detach(), last.detach()], [states.detach(), cells[:, -1].detach()])
    assert_trees_close(torch.autograd.grad((found * dh).sum() + (last * dc).sum(), given), wanted, 1e-12)


def test_derivatives_of_the_gru() -> None:
    given = [x.requires_grad_() for x in operands("gru", (2,), 3, 2, 3, torch.float64)]
    states, _ = formulas.gru(*given)
    dh = numbers(*states.shape, seed=8, dtype=states.dtype)
    wanted = torch.autograd.grad((states * dh).sum(), given)
    found = recurrent.gru(*given)
    assert_trees_close(torch.autograd.grad((found * dh).sum(), given), wanted, 1e-12)


def test_other_dtypes_are_left_to_the_plain_operations() -> None:
    given = operands("lstm", (2,), 3, 2, 3, torch.float32)
    wanted = plain("lstm", given)
    assert_trees_close(list(plain("lstm", [x.bfloat16() for x in given])), list(wanted), 5e-2)
    for dtype, count in ((torch.bfloat16, 0), (torch.float32, 1), (torch.float64, 1)):
        graph = make_fx(torch.ops.l2path.lstm)(*(x.to(dtype) for x in given))
        assert recurrent.use_native(graph.graph) == count


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traced_graphs_run_on_native_operations(mode: Any) -> None:
    given = operands("lstm", (2,), 3, 2, 3, torch.float64)

    def gradient(*operands: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in operands]
        return torch.autograd.grad(recurrent.lstm(*leaves)[0].square().sum(), leaves)

    stock = make_fx(gradient, tracing_mode=mode)(*given)
    lowered = rewritten(stock)
    called = [node.target for node in lowered.graph.nodes if node.op == "call_function"]
    assert torch.ops.l2path.native_lstm.default in called
    assert torch.ops.l2path.native_lstm_backward.default in called
    assert torch.ops.l2path.lstm.default not in called
    assert any(node.target == torch.ops.l2path.lstm.default for node in stock.graph.nodes)
    assert_trees_close(lowered(*given), gradient(*given), 1e-13)
