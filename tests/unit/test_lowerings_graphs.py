"""What is put into traced and compiled graphs, and the measurements that decide it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import l2path
from l2path import lowerings
from l2path.engine import repeat
from l2path.functional import vmap
from l2path.lowerings import measure, products
from l2path.lowerings.measure import Layout, faster
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels, rewritten

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test measures for itself, and leaves nothing behind."""
    monkeypatch.setattr(measure, "_known", {})


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernels, taken to be faster for everything."""
    native_kernels()
    monkeypatch.setattr(products, "faster", lambda *_: True)


def training(dtype: torch.dtype, members: int | None = 3) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A vmapped step of a small network, and its arguments; without members, one of a lone network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 1)).to(dtype)
        inputs, targets = torch.randn(11, 5, dtype=dtype), torch.randn(11, 1, dtype=dtype)
    optimizer = l2path.sgd(lr=0.1, momentum=0.9)
    step = l2path.make_train_step(module, nn.functional.mse_loss, optimizer)
    state = l2path.init_state(module, optimizer)
    lambdas = torch.tensor(0.1, dtype=dtype)
    if members is None:
        return step, (state, (inputs, targets), lambdas)
    return vmap(step, in_dims=(0, None, 0)), (repeat(state, members), (inputs, targets), lambdas.expand(members))


def targets_of(graph: fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def trace(call: Callable[..., Any], *operands: Any, mode: Any = "real") -> fx.GraphModule:
    module: fx.GraphModule = make_fx(call, tracing_mode=mode)(*operands)
    return module


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_traced_training_step_runs_on_native_products(dtype: torch.dtype, mode: str) -> None:
    step, operands = training(dtype)
    stock = trace(step, *operands, mode=mode)
    before = targets_of(stock.graph)
    lowered = rewritten(stock)
    after = targets_of(lowered.graph)
    # Three products forward, three for weights and two for activations backward.
    assert before.count(aten.bmm.default) == 8
    assert aten.bmm.default not in after
    assert after.count(torch.ops.l2path.tiled_bmm.default) == 8
    assert targets_of(stock.graph) == before
    lowered.graph.lint()
    expected = step(*operands)
    assert_trees_close(lowered(*operands), expected, 1e-5 if dtype == torch.float32 else 1e-13, check_dtype=True)
    assert_trees_close(stock(*operands), expected, 1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.usefixtures("always")
def test_a_lone_training_step() -> None:
    step, operands = training(torch.float64, members=None)
    stock = trace(step, *operands)
    assert aten.addmm.default in targets_of(stock.graph)
    lowered = rewritten(stock)
    after = targets_of(lowered.graph)
    assert {aten.mm.default, aten.addmm.default}.isdisjoint(after)
    assert after.count(torch.ops.l2path.tiled_mm.default) == 8
    assert_trees_close(lowered(*operands), step(*operands), 1e-13)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("call", "operands", "replaced"),
    [
        (torch.mm, ((3, 4), (4, 5)), True),
        (torch.bmm, ((2, 3, 4), (2, 4, 5)), True),
        (torch.addmm, ((5,), (3, 4), (4, 5)), True),
        (torch.addmm, ((3, 5), (3, 4), (4, 5)), True),
        (torch.baddbmm, ((2, 1, 5), (2, 3, 4), (2, 4, 5)), True),
        (lambda c, a, b: torch.addmm(c, a, b, beta=2), ((5,), (3, 4), (4, 5)), False),
        (lambda c, a, b: torch.addmm(c, a, b, alpha=2), ((5,), (3, 4), (4, 5)), False),
        (lambda a, b: torch.mm(a.half(), b.half()), ((3, 4), (4, 5)), False),
        (lambda a, b: torch.mm(a.int(), b.int()), ((3, 4), (4, 5)), False),
    ],
)
def test_which_products_are_replaced(
    call: Callable[..., Tensor], operands: tuple[tuple[int, ...], ...], replaced: bool
) -> None:
    tensors = [
        torch.arange(2.0 * i + torch.Size(shape).numel())[2 * i :].view(shape) for i, shape in enumerate(operands)
    ]
    stock = trace(call, *tensors)
    lowered = rewritten(stock)
    assert replaced == any(getattr(target, "namespace", "") == "l2path" for target in targets_of(lowered.graph))
    assert torch.equal(lowered(*tensors), call(*tensors))


def test_only_what_was_measured_to_be_faster_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    native_kernels()
    asked = []

    def wide(ours: Any, stock: Any, a: Layout, b: Layout, file: Path) -> bool:
        asked.append((ours, stock, a, b))
        assert file.suffix == ".json"
        return b.shape[-1] > 5

    monkeypatch.setattr(products, "faster", wide)
    a, b, c = torch.ones(2, 3, 4), torch.ones(2, 5, 4).mT, torch.ones(5, 6).expand(2, 5, 6)
    lowered = rewritten(trace(lambda a, b, c: a @ b @ c, a, b, c))
    targets = targets_of(lowered.graph)
    assert targets.count(aten.bmm.default) == 1
    assert targets.count(torch.ops.l2path.tiled_bmm.default) == 1
    f32, ours = torch.float32, torch.ops.l2path.tiled_bmm.default
    assert asked == [
        (ours, torch.bmm, Layout((2, 3, 4), (12, 4, 1), f32), Layout((2, 4, 5), (20, 1, 4), f32)),
        (ours, torch.bmm, Layout((2, 3, 5), (15, 5, 1), f32), Layout((2, 5, 6), (0, 6, 1), f32)),
    ]


ROUND = Layout((2, 3, 4), (12, 4, 1), torch.float32), Layout((2, 4, 5), (20, 1, 4), torch.float32)


def timed(monkeypatch: pytest.MonkeyPatch, times: dict[Any, float]) -> None:
    """Take times for each kernel from a table."""
    monkeypatch.setattr(measure, "_time", lambda product, left, right, calls: times[product])
    monkeypatch.setattr(measure, "BUDGET", 0.0)


def twice(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b).mul_(2).div_(2)


@pytest.mark.parametrize(("ours", "expected"), [(0.5, True), (0.9, True), (0.99, False), (1.0, False), (2.0, False)])
def test_a_kernel_is_chosen_for_its_time(monkeypatch: pytest.MonkeyPatch, ours: float, expected: bool) -> None:
    timed(monkeypatch, {twice: ours, torch.bmm: 1.0})
    assert faster(twice, torch.bmm, *ROUND) is expected
    timed(monkeypatch, {})
    assert faster(twice, torch.bmm, *ROUND) is expected  # remembered


def test_times_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(a: Tensor, b: Tensor) -> Tensor:
        for _ in range(300):
            torch.bmm(a, b)
        return torch.bmm(a, b)

    assert not faster(many, torch.bmm, *ROUND)
    assert faster(torch.bmm, many, *ROUND)


@pytest.mark.parametrize("wrong", [lambda a, b: torch.bmm(a, b) + 1e-5, lambda a, b: torch.bmm(a, b)[:, :2]])
def test_a_kernel_that_errs_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor, Tensor], Tensor]
) -> None:
    timed(monkeypatch, {wrong: 0.1, torch.bmm: 1.0})
    assert not faster(wrong, torch.bmm, *ROUND)


def test_a_kernel_that_fails_is_never_chosen() -> None:
    def fails(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("not enough memory")

    assert not faster(fails, torch.bmm, *ROUND)


def test_a_measurement_has_the_given_layout_and_leaves_no_trace() -> None:
    seen: list[Layout] = []

    def product(a: Tensor, b: Tensor) -> Tensor:
        seen.extend(Layout(tuple(x.shape), x.stride(), x.dtype) for x in (a, b))
        assert a.any()
        assert not torch.is_grad_enabled()
        return torch.bmm(a, b)

    before = torch.random.get_rng_state()
    with torch.device("meta"):  # another default
        faster(product, torch.bmm, *ROUND)
    assert set(seen) == set(ROUND)
    assert torch.equal(torch.random.get_rng_state(), before)
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        empty = Layout(shape, (12, 4, 1), torch.float64)
        faster(torch.bmm, torch.bmm, empty, Layout((shape[0], shape[2], 5), (20, 5, 1), torch.float64))


def test_a_measurement_is_bounded() -> None:
    a, b = Layout((500, 4000, 300), (0, 300, 1), torch.float32), Layout((500, 300, 300), (90000, 1, 300), torch.float32)
    left, right = measure._cut(a, b)
    count, rows, depth = left.shape
    assert right.shape == (count, depth, 300)
    assert count >= 1
    assert 64 <= rows <= 4000
    assert (left.strides, right.strides) == (a.strides, b.strides)
    assert count * rows * depth * 300 <= measure.LARGEST
    assert measure._cut(*ROUND) == ROUND
    plain = Layout((10000, 500), (500, 1), torch.float32), Layout((500, 700), (700, 1), torch.float32)
    assert [x.shape for x in measure._cut(*plain)] == [(64, 500), (500, 700)]


def test_measurements_are_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    other = ROUND[0]._replace(dtype=torch.float64), ROUND[1]._replace(dtype=torch.float64)
    timed(monkeypatch, {twice: 0.5, torch.bmm: 1.0})
    assert faster(twice, torch.bmm, *ROUND, file)
    timed(monkeypatch, {twice: 2.0, torch.bmm: 1.0})
    assert not faster(twice, torch.bmm, *other, file)
    measure._known.clear()  # as another process would begin
    timed(monkeypatch, {})
    assert faster(twice, torch.bmm, *ROUND, file)
    assert not faster(twice, torch.bmm, *other, file)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("held", ["", "{", "[1]"])
def test_a_file_that_cannot_be_read_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: str) -> None:
    file = tmp_path / "kept.json"
    file.write_text(held)
    timed(monkeypatch, {twice: 0.5, torch.bmm: 1.0})
    assert faster(twice, torch.bmm, *ROUND, file)
    measure._known.clear()
    assert faster(twice, torch.bmm, *ROUND, tmp_path / "missing" / "kept.json")


def descent(weights: tuple[Tensor, Tensor], lambdas: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
    """A step of gradient descent of one member, smaller than the library's: quick to compile."""

    def objective(weights: tuple[Tensor, Tensor]) -> Tensor:
        first, second = weights
        return ((inputs @ first.mT).tanh() @ second.mT).square().mean() + lambdas * first.square().sum()

    grads = torch.func.grad(objective)(weights)
    return tuple(w - 0.1 * g for w, g in zip(weights, grads, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("cpp_wrapper", "whole"),
    [
        (False, False),
        (True, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_training_step(monkeypatch: pytest.MonkeyPatch, cpp_wrapper: bool, whole: bool) -> None:
    from l2path.lowerings import inductor

    replaced = []
    monkeypatch.setattr(inductor, "replace", lambda graph, library: replaced.append(products.replace(graph, library)))
    if whole:
        step, operands = training(torch.float64)
    else:
        step = vmap(descent, in_dims=(0, 0, None))
        weights = torch.linspace(-1, 1, 3 * 9 * 5).view(3, 9, 5), torch.linspace(-1, 1, 3 * 7 * 9).view(3, 7, 9)
        operands = (weights, torch.tensor([0.1, 0.2, 0.3]), torch.linspace(0, 1, 55).view(11, 5))
    tolerance = 1e-13 if whole else 1e-6
    expected = step(*operands)
    # A graph out of a cache goes through no pass.
    base: dict[str, Any] = {"cpp_wrapper": cpp_wrapper, "fx_graph_cache": False}
    torch.compiler.reset()
    stock = torch.compile(step, options=base)(*operands)
    assert_trees_close(stock, expected, tolerance)
    assert replaced == []
    torch.compiler.reset()
    lowered = torch.compile(step, options=base | lowerings.compile_options())(*operands)
    # Of the 8 of the whole step inductor itself turns that of depth 1 into a multiplication.
    assert replaced == [7 if whole else 5]
    assert_trees_close(lowered, stock, tolerance, check_dtype=True)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("always")
def test_inductor_keeps_graphs_with_native_products_in_its_cache() -> None:
    from torch._dynamo.utils import counters

    a, b, new = torch.ones(2, 3, 4), torch.ones(2, 4, 5), float(time.time_ns() // 1000 % 10**6)  # a graph of its own
    found = []
    for options in (lowerings.compile_options(), lowerings.compile_options(), {}):
        torch.compiler.reset()
        counters.clear()
        call = torch.compile(lambda a, b: torch.bmm(a, b) + new, options=options)
        assert torch.equal(call(a, b), torch.full((2, 3, 5), 4.0 + new))
        found.append({name: count for name, count in counters["inductor"].items() if name.startswith("fxgraph_cache")})
    assert found == [{"fxgraph_cache_miss": 1}, {"fxgraph_cache_hit": 1}, {"fxgraph_cache_miss": 1}]
    torch.compiler.reset()
