"""The native convolutions against torch's own: values, gradients, layouts, and where they are taken."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

import l2path
from l2path.engine import Engine
from l2path.functional import lowered as lowering
from l2path.functional.lowered import Lowered
from l2path.lowerings import convolutions, measure, randomness
from l2path.lowerings.convolution import convolve
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels

DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
# Images [B, H, W, C], a kernel [height, width, C, O], and padding.
SIZES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]] = [
    ((3, 6, 7, 4), (3, 3, 4, 5), (1, 1)),
    ((2, 16, 16, 1), (3, 3, 1, 16), (1, 1)),
    ((2, 8, 8, 16), (3, 3, 16, 32), (1, 1)),
    ((1, 1, 20, 3), (1, 5, 3, 70), (0, 2)),
    ((2, 5, 5, 2), (5, 5, 2, 40), (0, 0)),
    ((2, 9, 9, 3), (1, 1, 3, 17), (0, 0)),
    ((2, 9, 9, 3), (3, 2, 3, 33), (3, 0)),  # more zeros than a kernel is high
    ((1, 4, 4, 1), (4, 4, 1, 1), (0, 0)),
]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    native_kernels()


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def torchs(x: Tensor, w: Tensor, pads: tuple[int, int]) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), padding=pads).permute(0, 2, 3, 1)


def value_and_gradients(call: Any, x: Tensor, w: Tensor, pads: tuple[int, int]) -> list[Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = call(x, w, pads)
    weight = numbers(tuple(y.shape), y.dtype, seed=2)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), (x, w))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "w", "pads"), SIZES)
def test_sizes(x: Any, w: Any, pads: tuple[int, int], dtype: torch.dtype) -> None:
    operands = numbers(x, dtype), numbers(w, dtype, seed=1)
    found, want = (value_and_gradients(call, *operands, pads) for call in (convolve, torchs))
    assert_trees_close(found, want, TOLERANCE[dtype], check_dtype=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_leading_axes(dtype: torch.dtype) -> None:
    def layouts(shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {
            "contiguous": numbers(shape, dtype),
            "reversed axes": numbers(shape[::-1], dtype).permute(*reversed(range(len(shape)))),
            "sliced": numbers((*shape[:-1], shape[-1] + 3), dtype)[..., 1:-2],
            "every second": numbers((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2],
            "shared": numbers(shape[1:], dtype).expand(shape),
        }

    for lead in ((), (2,), (2, 3)):
        images, kernels, gradients = (layouts((*lead, *own)) for own in ((2, 4, 5, 3), (2, 3, 3, 4), (2, 3, 3, 4)))
        for x, w in itertools.product(images.values(), kernels.values()):
            found = torch.ops.l2path.convolve(x, w)
            want = [
                torchs(one, kernel, (0, 0))
                for one, kernel in zip(x.reshape(-1, 2, 4, 5, 3), w.reshape(-1, 2, 3, 3, 4), strict=True)
            ]
            assert_trees_close(found, torch.stack(want).reshape(found.shape), TOLERANCE[dtype])
            assert found.is_contiguous()
        for x, dy in itertools.product(images.values(), gradients.values()):
            found = torch.ops.l2path.convolve_weight(x, dy)
            wanted = torch.ops.l2path.convolve_weight(x.contiguous(), dy.contiguous())
            assert torch.equal(found, wanted)


def test_no_images_and_no_members() -> None:
    assert torch.ops.l2path.convolve(torch.ones(0, 4, 4, 2), torch.ones(3, 3, 2, 5)).shape == (0, 2, 2, 5)
    found = torch.ops.l2path.convolve_weight(torch.ones(0, 4, 4, 2), torch.ones(0, 2, 2, 5))
    assert torch.equal(found, torch.zeros(3, 3, 2, 5))
    assert torch.ops.l2path.convolve(torch.ones(0, 1, 4, 4, 2), torch.ones(0, 3, 3, 2, 5)).shape == (0, 1, 2, 2, 5)
    assert torch.equal(
        torch.ops.l2path.convolve(torch.ones(1, 3, 3, 0), torch.ones(3, 3, 0, 2)), torch.zeros(1, 1, 1, 2)
    )


@pytest.mark.parametrize(
    ("x", "other"),
    [
        (torch.ones(2, 4, 4, 2), torch.ones(3, 3, 3, 5)),
        (torch.ones(2, 4, 4, 2), torch.ones(5, 3, 2, 5)),
        (torch.ones(2, 4, 4, 2), torch.ones(3, 3, 2, 5, dtype=torch.float64)),
        (torch.ones(3, 2, 4, 4, 2), torch.ones(2, 3, 3, 2, 5)),
        (torch.ones(4, 4, 2), torch.ones(3, 2, 5)),
        (torch.ones(2, 4, 4, 2, dtype=torch.int64), torch.ones(3, 3, 2, 5, dtype=torch.int64)),
    ],
)
def test_what_does_not_fit_is_refused(x: Tensor, other: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"l2path::convolve: got \[.*\] and \[.*\]; expected"):
        torch.ops.l2path.convolve(x, other)


def test_second_derivatives() -> None:
    x, w = numbers((2, 4, 5, 2), torch.float64).requires_grad_(), numbers((3, 2, 2, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: convolve(a, b, (1, 0)), (x, w))
    assert torch.autograd.gradgradcheck(lambda a, b: convolve(a, b, (1, 0)), (x, w))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_members(dims: tuple[int | None, int | None]) -> None:
    """Each member of a vmapped gradient equals one that is alone, whichever operand they share."""
    x, w = numbers((2, 4, 5, 3), torch.float64), numbers((3, 3, 3, 4), torch.float64, seed=1)
    stacked = [
        t if dim is None else torch.stack([t * i for i in (1.0, 2.0, 3.0)], dim)
        for t, dim in zip((x, w), dims, strict=True)
    ]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return convolve(a, b, (1, 1)).sin().sum()

    found = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(*stacked)
    for k in range(3):
        one = [t if dim is None else t.select(dim, k) for t, dim in zip(stacked, dims, strict=True)]
        a, b = (t.clone().requires_grad_() for t in one)
        want = torch.autograd.grad(torchs(a, b, (1, 1)).sin().sum(), (a, b))
        assert_trees_close([f[k] for f in found], list(want), 1e-13)


def test_the_comparison_can_fail() -> None:
    x, w = numbers((2, 4, 5, 3), torch.float64), numbers((3, 3, 3, 4), torch.float64)
    with pytest.raises(AssertionError):
        assert_trees_close(convolve(x, w.flip(0), (1, 1)), torchs(x, w, (1, 1)), 1e-3)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "taken", lambda *_: True)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
        (nn.Conv1d(3, 4, 1, bias=False), (2, 3, 9)),
        (nn.Conv1d(3, 4, 5, padding="same"), (2, 3, 9)),
        (nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), (2, 3, 7, 8)),
        (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 8)),
    ],
)
def test_layers_of_torch(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = 0

    def counted(*given: Any) -> Tensor:
        nonlocal called
        called += 1
        return convolve(*given)

    monkeypatch.setattr(lowering, "convolve", counted)
    layer = layer.to(dtype)
    x = numbers(shape, dtype)
    want = layer(x)
    with Lowered(native=True):
        found = layer(x)
    assert called == 1
    assert_trees_close(found, want, TOLERANCE[dtype])
    with Lowered():
        layer(x)
    assert called == 1


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 2, padding="same"), nn.Conv2d(4, 4, 3).bfloat16(),
    ],
)  # fmt: skip
def test_what_is_not_meant_stays_as_it_is(layer: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    if layer.weight.dtype == torch.bfloat16:
        monkeypatch.setattr(lowering, "taken", convolutions.taken)

    def refused(*_: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(lowering, "convolve", refused)
    x = numbers((2, 4, 7, 7), torch.float32).to(layer.weight.dtype)
    with Lowered(native=True):
        found = layer(x)
    assert_trees_close(found, layer(x), 1e-2 if layer.weight.dtype == torch.bfloat16 else 2e-6)


def test_it_is_taken_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_known", {})
    x, w = numbers((2, 6, 5, 3), torch.float64), numbers((3, 2, 3, 4), torch.float64)
    assert_trees_close(convolutions.by_patches(x, w), torchs(x, w, (0, 0)), 1e-14)
    asked: list[Any] = []

    def measured(ours: Any, stock: Any, a: measure.Layout, b: measure.Layout, file: Any) -> bool:
        asked.append((a, b))
        assert_trees_close(
            ours(measure._tensor(a), measure._tensor(b)), stock(measure._tensor(a), measure._tensor(b)), 0.0
        )
        return False

    monkeypatch.setattr(convolutions, "faster", measured)
    assert not convolutions.taken((64, 6, 5, 3), (3, 2, 3, 4), torch.float32)
    assert [(layout.shape, layout.strides) for layout in asked[0]] == [
        ((64, 6, 5, 3), (90, 15, 3, 1)), ((3, 2, 3, 4), (24, 12, 4, 1)),
    ]  # fmt: skip
    assert not convolutions.taken((64, 6, 5, 3), (3, 2, 3, 4), torch.bfloat16)
    assert len(asked) == 1


@pytest.mark.usefixtures("always")
def test_autocast_inside_of_a_model_keeps_its_dtype() -> None:
    layer, x = nn.Conv2d(3, 4, 3), numbers((2, 3, 5, 5), torch.float32)
    with Lowered(native=True), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
        nn.Conv2d(5, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4, 3),
    ).double()  # fmt: skip


def test_compiled_members_equal_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CNN whose program holds native convolutions and pooling, against vmapped and looped members."""
    monkeypatch.setattr(lowering, "taken", torch.compiler.assume_constant_result(lambda *_: True))
    x = numbers((40, 1, 8, 8), torch.float64)
    y = torch.arange(40) % 3
    seen: set[str] = set()

    def noted(node: torch.fx.Node) -> bool:
        seen.add(str(node.target))
        return False

    monkeypatch.setattr(randomness, "draws", noted)

    def run(engine: Any) -> l2path.PathResult:
        return l2path.batch_train(
            pooled(), (x, y), loss_fn=F.cross_entropy, optimizer=l2path.adam(lr=0.01), epochs=3, batch_size=16,
            lambdas=[0.0, 0.01, 0.1], seeds=(0, 1), engine=engine,
        )  # fmt: skip

    torch._dynamo.reset()  # what is cached is compiled without a look at it
    with torch._inductor.config.patch(force_disable_caches=True):
        found = run(Engine("compiled", 2, workers=2, steps=2, native=True, partial=False))
    assert found.engine.native
    assert {"l2path.convolve.default", "l2path.convolve_weight.default", "l2path.max_pool.default"} <= seen
    for engine in ("vmap", "loop"):
        other = run(engine)
        assert_trees_close(found.params, other.params, 1e-10)
        assert_trees_close(found.buffers, other.buffers, 1e-10)
