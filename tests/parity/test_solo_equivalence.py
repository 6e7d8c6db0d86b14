"""Member k of a batched run equals its own K = 1 run, and a handwritten torch loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import BATCH, classes, handwritten, noisy, smooth
from tests.parity.optimizer_cases import CASES, Case

RTOL = 1e-10
EPOCHS = 6  # of 6 steps
GRID = l2path.lambda_grid(1e-4, 0.3, 7, zero=True)  # K = 8


def elementwise() -> dict[str, Any]:
    weight = torch.rand(3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"0.weight": GRID[:, None, None] * torch.linspace(0.5, 2, 5), "3.weight": weight * GRID[:, None, None]}


SPECS: dict[str, Callable[[], Any]] = {
    "global": lambda: GRID,
    "per-layer": lambda: {"0.*": GRID, "3.weight": GRID.flip(0), "*": 0.01},
    "element-wise": elementwise,
    "weights-only": lambda: l2path.weights_only(GRID),
}


def train(make: Callable[[], nn.Module], case: Case, **options: Any) -> l2path.PathResult:
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": case.build(case.lr, None), "epochs": EPOCHS, "batch_size": BATCH,
        "validation": classes(40, 2), "select": "val_loss",
    }  # fmt: skip
    return l2path.batch_train(make(), classes(), **(settings | options))


def at_rate(case: Case, lr: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda params: case.build_torch(params, lr)


def solo_lambdas(result: l2path.PathResult, k: int) -> dict[str, Tensor]:
    return {name: value[k] for name, value in result.lambdas_by_parameter.items()}


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning", "ignore::l2path.MixedDecayWarning")
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_members_equal_a_handwritten_loop(case: Case, spec: str) -> None:
    result = train(smooth, case, lambdas=SPECS[spec]())
    for k in range(len(result)) if spec == "global" else (0, 3, 7):
        module, history = handwritten(
            smooth, classes(), lambda p: case.build_torch(p, case.lr), solo_lambdas(result, k), epochs=EPOCHS
        )
        assert_trees_close(result.member(k).params, dict(module.named_parameters()), RTOL)
        assert_trees_close(result.history["loss"][:, k].tolist(), history["loss"], RTOL)
        assert_trees_close(result.history["penalty"][:, k].tolist(), history["penalty"], RTOL)
        x, y = classes(40, 2)
        scored = F.cross_entropy(module.eval()(x), y).item()
        assert_trees_close(float(result.history["val_loss"][-1, k]), scored, RTOL)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning", "ignore::l2path.MixedDecayWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_members_equal_their_own_run(case: Case) -> None:
    result = train(noisy, case, lambdas=GRID)
    for k in range(len(result)):
        alone = train(noisy, case, lambdas=GRID[k : k + 1])
        assert_trees_close(take(result.params, k), take(alone.params, 0), RTOL)
        assert_trees_close(take(result.buffers, k), take(alone.buffers, 0), RTOL)
        for name in result.history:
            assert_trees_close(result.history[name][:, k], alone.history[name][:, 0], RTOL)


def take(tree: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: value[k] for name, value in tree.items()}


@pytest.mark.parametrize(("engine", "chunk"), [("vmap", 1), ("vmap", 3), ("vmap", 8), ("loop", 1), ("loop", 8)])
def test_batchnorm_and_dropout_for_every_engine_and_chunk(engine: Literal["vmap", "loop"], chunk: int) -> None:
    case = CASES[1]
    result = train(noisy, case, lambdas=GRID, engine=engine, member_chunk=chunk, seed=5)
    assert result.engine.kind == engine
    assert result.engine.member_chunk == chunk
    for k in (0, 4, 7):
        module, history = handwritten(
            noisy, classes(), lambda p: case.build_torch(p, case.lr), solo_lambdas(result, k), epochs=EPOCHS, seed=5
        )
        assert_trees_close(result.member(k).state_dict(), module.state_dict(), RTOL)
        assert_trees_close(result.history["loss"][:, k].tolist(), history["loss"], RTOL)


def test_the_comparison_can_fail() -> None:
    # Another seed's masks must be noticed: dropout would otherwise go untested.
    case = CASES[1]
    result = train(noisy, case, lambdas=GRID, seed=5)
    module, _ = handwritten(
        noisy, classes(), lambda p: case.build_torch(p, case.lr), solo_lambdas(result, 0), epochs=EPOCHS, seed=6
    )
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(result.member(0).params, dict(module.named_parameters()), 1e-3)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_swept_lr_is_crossed_with_lambda() -> None:
    rates, case = [0.02, 0.05, 0.1], CASES[1]
    result = train(smooth, case, lambdas=GRID, sweep={"lr": rates})
    assert len(result) == 3 * len(GRID)
    for k in (0, 9, 23):
        member = result.member(k)
        assert member.hyper == {"lr": rates[k // 8]}
        assert member.lambdas == pytest.approx(float(GRID[k % 8]))
        module, _ = handwritten(
            smooth, classes(), at_rate(case, member.hyper["lr"]), solo_lambdas(result, k),
            epochs=EPOCHS,
        )  # fmt: skip
        assert_trees_close(member.params, dict(module.named_parameters()), RTOL)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_swept_decay_is_adamw_weight_decay() -> None:
    decays = [3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.0]
    result = train(smooth, CASES[0], optimizer=l2path.adamw(lr=0.02), lambdas=None, sweep={"decay": decays})
    for k, decay in enumerate(decays):
        module, _ = handwritten(
            smooth, classes(), partial(torch.optim.AdamW, lr=0.02, weight_decay=decay), {"0.bias": 0.0},
            epochs=EPOCHS,
        )  # fmt: skip
        assert_trees_close(result.member(k).params, dict(module.named_parameters()), RTOL)
        assert result.member(k).hyper == {"decay": decay}
        assert result.member(k).lambdas is None


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
@pytest.mark.parametrize("decay", [{"*": 0.01}, 0.01, l2path.weights_only(0.01)], ids=["spec", "number", "weights"])
def test_swept_decay_per_parameter(decay: Any) -> None:
    optimizer = l2path.adamw(lr=0.02, decay=decay)
    result = train(smooth, CASES[0], optimizer=optimizer, sweep={"decay": {"0.weight": [0.5, 0.1], "*": 0.0}})
    for k, decay in enumerate([0.5, 0.1]):

        def build(params: list[Tensor], decay: float = decay) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                [{"params": params[:1], "weight_decay": decay}, {"params": params[1:], "weight_decay": 0.0}], lr=0.02
            )

        module, _ = handwritten(smooth, classes(), build, {"0.bias": 0.0}, epochs=EPOCHS)
        assert_trees_close(result.member(k).params, dict(module.named_parameters()), RTOL)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_clipping_is_per_member() -> None:
    case = CASES[1]
    result = train(smooth, case, lambdas=GRID, grad_transform=l2path.clip_by_global_norm(0.05))
    for k in (0, 7):
        module, _ = handwritten(
            smooth, classes(), lambda p: case.build_torch(p, case.lr), solo_lambdas(result, k), epochs=EPOCHS, clip=0.05
        )
        assert_trees_close(result.member(k).params, dict(module.named_parameters()), RTOL)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_seeds_vary_weights_order_and_masks() -> None:
    case = CASES[1]

    def factory() -> nn.Module:
        layers = (nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        return nn.Sequential(*layers).double()

    result = l2path.batch_train(
        factory, classes(), loss_fn=F.cross_entropy, optimizer=case.build(case.lr, None), lambdas=GRID[:3],
        epochs=EPOCHS, batch_size=BATCH, seeds=(3, 11), validation=classes(40, 2), member_chunk=2,
    )  # fmt: skip
    assert result.table.seeds == (3, 3, 3, 11, 11, 11)
    assert result.cvm.shape == (3,)
    assert_trees_close(result.cvm, result.scores.reshape(2, 3).mean(0), 1e-15)
    for k, seed in enumerate(result.table.seeds):

        def make(seed: int = seed) -> nn.Module:
            torch.manual_seed(seed)
            return factory()

        module, _ = handwritten(
            make, classes(), lambda p: case.build_torch(p, case.lr), solo_lambdas(result, k), epochs=EPOCHS, seed=seed
        )
        assert_trees_close(result.member(k).state_dict(), module.state_dict(), RTOL)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_explicit_members() -> None:
    rows: list[dict[str, Any]] = [
        {"lambdas": 0.1, "lr": 0.05, "seed": 4},
        {"lambdas": {"0.*": 0.2}, "lr": 0.02, "seed": 0},
    ]
    case = CASES[1]
    result = train(smooth, case, members=rows)
    for k, row in enumerate(rows):
        module, _ = handwritten(
            smooth, classes(), at_rate(case, row["lr"]), solo_lambdas(result, k),
            epochs=EPOCHS, seed=row["seed"],
        )  # fmt: skip
        assert_trees_close(result.member(k).params, dict(module.named_parameters()), RTOL)
    assert not result.lambdas_by_parameter["3.weight"][1].any()


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_fixed_engine_repeats_bit_for_bit(engine: Literal["vmap", "loop"]) -> None:
    first = train(noisy, CASES[4], lambdas=GRID, engine=engine, member_chunk=3)
    again = train(noisy, CASES[4], lambdas=GRID, engine=first.engine)
    assert again.engine == first.engine
    assert_trees_close(again.params, first.params, 0.0)
    assert_trees_close(again.history, first.history, 0.0)


def test_float32_members_equal_their_solo_runs() -> None:
    # Rounding grows with the steps; this is the tolerance that the conventions page states.
    x, y = classes()
    data = (x.float(), y)
    result = l2path.batch_train(
        smooth().float(), data, loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.05, momentum=0.9), lambdas=GRID,
        epochs=EPOCHS, batch_size=BATCH,
    )  # fmt: skip
    module, _ = handwritten(
        lambda: smooth().float(), data, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), solo_lambdas(result, 2),
        epochs=EPOCHS,
    )  # fmt: skip
    assert result.params["0.weight"].dtype == torch.float32
    assert_trees_close(result.member(2).params, dict(module.named_parameters()), 1e-4)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_decay_of_weights_only_is_the_usual_adamw_practice() -> None:
    swept = train(smooth, CASES[0], optimizer=l2path.adamw(lr=0.02), sweep={"decay": l2path.weights_only([0.5, 0.1])})
    built = train(smooth, CASES[0], optimizer=l2path.adamw(lr=0.02, decay=l2path.weights_only(0.5)), lambdas=[0.0])

    def build(params: list[Tensor]) -> torch.optim.Optimizer:
        groups = [{"params": [p for p in params if p.ndim == 2]}, {"params": [p for p in params if p.ndim < 2]}]
        return torch.optim.AdamW([groups[0] | {"weight_decay": 0.5}, groups[1] | {"weight_decay": 0.0}], lr=0.02)

    module, _ = handwritten(smooth, classes(), build, {"0.bias": 0.0}, epochs=EPOCHS)
    assert_trees_close(swept.member(0).params, dict(module.named_parameters()), RTOL)
    assert_trees_close(built.member(0).params, dict(module.named_parameters()), RTOL)
    assert swept.best.index in (0, 1)
