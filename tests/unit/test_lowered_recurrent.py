"""Fused LSTM and GRU layers against torch's own: values, gradients, members, and whole compiled programs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import l2path
from l2path.blocks import Block
from l2path.compiled import Compiled
from l2path.engine import repeat
from l2path.functional import functionalize, grad_with_torch_func, vmap
from l2path.functional.lowered_recurrent import LoweredGRU, LoweredLSTM, lower_layers
from l2path.losses import data_loss
from l2path.lowerings import recurrent
from l2path.training import TrainState, build_step
from tests.helpers import assert_trees_close
from tests.unit.lowerings_kernels import native_kernels

F64 = torch.float64
KINDS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
# In float32 a gradient of some ten steps keeps five digits.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "everything": {"num_layers": 3, "bidirectional": True, "batch_first": True, "bias": False},
    "dropout": {"num_layers": 3, "dropout": 0.4, "bidirectional": True},
}


def layers(kind: str, dtype: torch.dtype = F64, **options: Any) -> tuple[nn.Module, nn.Module]:
    """One of torch's layers, and a fused one with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = KINDS[kind](4, 7, **options).to(dtype)
    lowered = copy.deepcopy(layer)
    lower_layers(lowered)
    return layer, lowered


def states_of(kind: str, count: int, *batch: int, dtype: torch.dtype = F64, width: int = 7) -> Any:
    found = [numbers(count, *batch, width, seed=5 + i, dtype=dtype) for i in range(2)]
    return tuple(found) if kind == "lstm" else found[0]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def leaves(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [x for part in tree or () for x in leaves(part)]


def outcome(layer: nn.Module, x: Tensor, hx: Any = None, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """Outputs and states of a call, and the gradients of everything by a weighted sum of them."""
    given = [t.detach().requires_grad_() for t in (x, *leaves(hx))]
    state = None if hx is None else tuple(given[1:]) if isinstance(hx, tuple) else given[1]
    torch.manual_seed(seed)
    found = layer(given[0], state)
    weighted = sum(
        (y * torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view(y.shape).sin()).sum() for y in leaves(found)
    )
    assert isinstance(weighted, Tensor)
    return found, list(torch.autograd.grad(weighted, [*given, *layer.parameters()]))


def assert_alike(kind: str, x: Tensor, hx: Any = None, **options: Any) -> None:
    layer, lowered = layers(kind, x.dtype, **options)
    with torch.random.fork_rng(devices=[]):
        assert_trees_close(outcome(lowered, x, hx), outcome(layer, x, hx), TOLERANCE[x.dtype], check_dtype=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind: str, options: str, dtype: torch.dtype) -> None:
    chosen = OPTIONS[options]
    x = numbers(5, 3, 4, dtype=dtype)
    assert_alike(kind, x, **chosen)
    count = chosen.get("num_layers", 1) * (2 if chosen.get("bidirectional") else 1)
    batch = 5 if chosen.get("batch_first") else 3
    assert_alike(kind, x, states_of(kind, count, batch, dtype=dtype), **chosen)
    # without a batch
    assert_alike(kind, x[:, 0], **chosen)
    assert_alike(kind, x[:, 0], states_of(kind, count, dtype=dtype), **chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_in_eval_mode_drops_nothing(kind: str) -> None:
    layer, lowered = (m.eval() for m in layers(kind, num_layers=2, dropout=0.9))
    assert_trees_close(lowered(numbers(3, 2, 4)), layer(numbers(3, 2, 4)))


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (1, 1), (4, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_at_the_edge(kind: str, shape: tuple[int, int]) -> None:
    layer, lowered = layers(kind)
    x, hx = numbers(*shape, 4), states_of(kind, 1, shape[1])
    assert_trees_close(lowered(x, hx), layer(x, hx), check_dtype=True)
    if shape[1]:
        assert_alike(kind, x, hx)
    narrow, fused = KINDS[kind](2, 1).double(), KINDS[kind](2, 1).double()
    fused.load_state_dict(narrow.state_dict())
    lower_layers(fused)
    assert_trees_close(fused(x[..., :2]), narrow(x[..., :2]))


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(kind: str) -> None:
    every_second, shared = numbers(3, 5, 8).transpose(0, 1)[..., ::2], numbers(4).expand(5, 3, 4)
    state = states_of(kind, 1, 3, width=14)
    hx = tuple(s[..., ::2] for s in state) if isinstance(state, tuple) else state[..., ::2]
    for x in (every_second, shared):
        assert_alike(kind, x, hx)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_those_of_torch(kind: str) -> None:
    layer, lowered = layers(kind)
    x = numbers(5, 3, 4)
    wrong: list[tuple[Any, ...]] = [
        (numbers(5, 3, 6),),
        (numbers(5, 3, 4, 1),),
        (numbers(0, 3, 4),),
        (x, states_of(kind, 2, 3)),
        (x, states_of(kind, 1, 1)),
        (x, states_of(kind, 1, 3, width=6)),
        (x, states_of(kind, 1)),
        (x[0], states_of(kind, 1, 3)),
    ]
    for arguments in wrong:
        for module in (layer, lowered):
            with pytest.raises((RuntimeError, ValueError)):
                module(*arguments)
    lengths = torch.tensor([5, 4, 2])
    with pytest.raises(NotImplementedError, match="takes no packed sequence"):
        lowered(pack_padded_sequence(x, lengths))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(NotImplementedError, match="knows no autocast"):
        lowered(x)


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_derivatives(kind: str) -> None:
    _, lowered = layers(kind)
    x = numbers(2, 3, 4).requires_grad_()
    (first,) = torch.autograd.grad(lowered(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        first.sum().backward()


def weighted_sum(layer: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        out, last = functional_call(layer, params, (x,))
        total: Tensor = (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape).sin()).sum()
        return total + sum(y.square().sum() for y in leaves(last))

    return loss


@pytest.mark.parametrize("options", ["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_equal_a_loop(kind: str, options: str) -> None:
    layer, lowered = layers(kind, **OPTIONS[options])
    params = {n: p.detach() + 0.1 * numbers(3, *p.shape, seed=i) for i, (n, p) in enumerate(layer.named_parameters())}
    x = numbers(2, 5, 3, 4, seed=9)
    # Weights by member; by member and, in a map around that, by group; and inputs that are batched with no weight.
    one = [[grad(weighted_sum(layer))({n: p[k] for n, p in params.items()}, x[g]) for k in range(3)] for g in range(2)]
    wanted = [{n: torch.stack([member[n] for member in group]) for n in params} for group in one]
    batched = vmap(grad(weighted_sum(lowered)), in_dims=(0, None))
    assert_trees_close(batched(params, x[0]), wanted[0])
    both = vmap(batched, in_dims=(None, 0))(params, x)
    assert_trees_close(both, {n: torch.stack([group[n] for group in wanted]) for n in params})
    first = {n: p[0] for n, p in params.items()}
    inputs = vmap(grad(weighted_sum(lowered), argnums=1), in_dims=(None, 0))(first, x)
    assert_trees_close(inputs, torch.stack([grad(weighted_sum(layer), argnums=1)(first, part) for part in x]))


class Forecaster(nn.Module):
    """Layers inside a module, used as people use them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"lstm": nn.LSTM(3, 5, batch_first=True), "gru": nn.GRU(5, 4, batch_first=True)})
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        lstm: Any = self.body["lstm"]
        gru = self.body["gru"]
        lstm.flatten_parameters()
        zeros = x.new_zeros(lstm.num_layers, x.shape[0], lstm.hidden_size)
        hidden, _ = lstm(x, (zeros, zeros))
        out: Tensor = self.head(gru(hidden)[1][-1])
        return out


def test_a_functional_with_fused_layers() -> None:
    torch.manual_seed(0)
    module = Forecaster().double()
    fn = functionalize(module)
    lowered = fn.lowered()
    kinds = [type(layer) for layer in lowered.template.modules()]
    assert LoweredLSTM in kinds
    assert LoweredGRU in kinds
    assert nn.LSTM not in kinds
    # Neither the caller's module nor the functional that it was made from is touched.
    for other in (module, fn.template):
        assert [type(layer) for layer in other.modules()].count(nn.LSTM) == 1
    assert lowered.params is fn.params
    of, like = (dict(m.named_modules())["body.lstm"] for m in (lowered.template, fn.template))
    assert_trees_close([list(of.parameters()), of.all_weights], [list(like.parameters()), like.all_weights])
    x = numbers(6, 5, 3)
    assert_trees_close(lowered.call(fn.params, {}, x), fn.call(fn.params, {}, x))
    assert_trees_close(lowered.evaluation().call(fn.params, {}, x), fn.call(fn.params, {}, x))
    assert str(lowered.template).replace("Lowered", "") == str(fn.template)


class Own(nn.LSTM):
    """A subclass, which may do anything."""


@pytest.mark.parametrize("layer", [nn.Linear(2, 3), nn.LSTM(2, 3, proj_size=2), nn.RNN(2, 3), Own(2, 3)])
def test_what_cannot_be_fused_stays_as_it_is(layer: nn.Module) -> None:
    fn = functionalize(nn.Sequential(layer))
    assert fn.lowered() is fn


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.parametrize("native", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_compiled_program_trains_as_a_loop_does(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    native_kernels()
    fused: list[int] = []

    def counted(graph: Any) -> int:
        fused.append(use_native(graph))
        return fused[-1]

    use_native = recurrent.use_native
    monkeypatch.setattr(recurrent, "use_native", counted)
    torch.manual_seed(0)
    module, members, steps = Forecaster().double(), 2, 3
    batches = [(numbers(6, 5, 3, seed=i), numbers(6, 1, seed=50 + i)) for i in range(steps)]
    lambdas = torch.tensor([1e-3, 0.3], dtype=F64)
    optimizer = l2path.sgd(lr=0.1)
    fn = functionalize(module).lowered()
    step = build_step(data_loss(fn, F.mse_loss), optimizer, None, {}, fn, grad_with_torch_func)
    program = Compiled(step, members, torch.device("cpu"), native)
    state = repeat(l2path.init_state(module, optimizer), members)
    with torch._inductor.config.patch(fx_graph_cache=False):  # a graph out of a cache goes through no pass
        found, metrics = program.compile(state, Block(batches), {n: lambdas for n in fn.params})
    assert isinstance(found, TrainState)
    assert max(fused, default=0) == (4 if native else 0)
    for k in range(members):
        alone = copy.deepcopy(module)
        torch_optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, weight_decay=float(lambdas[k]))
        losses = []
        for x, y in batches:
            torch_optimizer.zero_grad()
            loss = F.mse_loss(alone(x), y)
            loss.backward()
            torch_optimizer.step()
            losses.append(loss.detach())
        wanted = {n: p.detach() for n, p in alone.named_parameters()}
        assert_trees_close({n: p[k] for n, p in found.params.items()}, wanted)
        assert_trees_close(leaves(tuple(metrics))[0][:, k], torch.stack(losses))
    torch.compiler.reset()
