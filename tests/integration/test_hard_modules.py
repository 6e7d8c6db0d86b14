"""Modules, losses and data that break naive drivers: each was a wrong number or a lost run once."""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import l2path
from tests.helpers import assert_trees_close

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, :1] - 0.5 * X[:, 1:2]
LAMBDAS = [0.3, 0.1, 0.03, 0.0]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1).double()


def train(module: Any = None, data: Any = (X, Y), **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.mse_loss,
        "optimizer": l2path.sgd(lr=0.05),
        "lambdas": LAMBDAS,
        "epochs": 2,
        "batch_size": 6,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        warnings.simplefilter("ignore", l2path.IncompleteWarning)
        return l2path.batch_train(linear() if module is None else module, data, **(options | changes))


class With(nn.Module):
    """A linear model with something to register and something to do."""

    linear: nn.Linear

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.linear = linear()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


# --- validation and randomness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"member_chunk": 1}, {"seeds": (0, 1)}])
def test_a_shuffled_validation_loader_keeps_the_rows_paired(changes: dict[str, Any]) -> None:
    data = TensorDataset(X, Y)
    plain = train(validation=DataLoader(data, batch_size=7), **changes)
    shuffled = train(validation=DataLoader(data, batch_size=7, shuffle=True), **changes)
    assert_trees_close(shuffled.uncertainty.difference_errors, plain.uncertainty.difference_errors, 1e-10)


class DrawsInEval(With):
    """Dropout that stays on in eval mode."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("chunk", [1, 3, 4])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_masks_in_eval_mode_are_the_same_for_all_members(engine: Literal["vmap", "loop"], chunk: int) -> None:
    frozen = l2path.sgd(lr=0.0)
    result = train(DrawsInEval(), optimizer=frozen, validation=(X, Y), engine=engine, member_chunk=chunk)
    assert len(set(result.history["val_loss"][-1].tolist())) == 1
    outputs = result.predict(X)
    assert_trees_close(outputs, outputs[:1].expand_as(outputs), 1e-14)
    assert result.uncertainty.differences is not None
    assert not result.uncertainty.differences.any()


def test_a_shuffling_stream_is_the_same_whatever_the_seeds_are() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)
    alone = train(data=loader, batch_size=None, seed=2)
    among = train(data=loader, batch_size=None, seeds=(5, 2))
    assert_trees_close(among.params["weight"][4:], alone.params["weight"], 1e-12)
    one = train(data=loader, batch_size=None, lambdas=None, members=[{"lambdas": 0.1, "seed": 2}])
    two = train(data=loader, batch_size=None, lambdas=None, members=[{"lambdas": 0.1, "seed": s} for s in (7, 2)])
    assert_trees_close(two.params["weight"][1], one.params["weight"][0], 1e-12)


# --- modules ----------------------------------------------------------------------------------------------------------


class Counts(With):
    """A warm-up that counts its calls on a plain attribute."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.linear(x) * min(1.0, self.calls / 10)


class Keeps(With):
    """Keeps its activation for later."""

    def forward(self, x: Tensor) -> Any:
        self.kept = self.linear(x)
        return self.kept


@pytest.mark.parametrize(("module", "name"), [(Counts(), "calls"), (Keeps(), "kept")])
def test_attributes_set_in_forward_are_put_back_and_told(module: nn.Module, name: str) -> None:
    with pytest.warns(l2path.ModuleStateWarning, match=rf"\['{name}'\].*must be a buffer"):
        result = train(module, validation=(X, Y))
    assert name not in vars(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.ModuleStateWarning)
        alone = train(module, lambdas=LAMBDAS[2:3], engine="loop")
    assert_trees_close(alone.params["linear.weight"][0], result.params["linear.weight"][2], 1e-12)
    result.best.state_dict()


BUFFERS = {
    "bool": torch.tensor([True, False, True, True]),
    "int": torch.arange(4),
    "minus infinity": torch.tensor([0.0, -float("inf")]),
    "NaN": torch.tensor([float("nan"), 1.0]),
    "expanded": torch.ones(1).expand(4),
    "empty": torch.ones(0),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_every_kind(kind: str) -> None:
    result = train(With(mask=BUFFERS[kind]), validation=(X, Y))
    assert result.engine.kind == "vmap"
    assert_trees_close(result.params["linear.weight"], train().params["weight"], 1e-12)
    kept = result.best.state_dict()["mask"]
    assert torch.equal(kept.nan_to_num(), BUFFERS[kind].nan_to_num())
    With(mask=BUFFERS[kind].clone()).load_state_dict(result.member(1).state_dict(), strict=True)


def test_a_mask_of_infinities_does_not_hide_other_buffers_from_the_self_check() -> None:
    class Leaks(With):
        """Reads one member's weights for the buffer of all of them, which only batching breaks."""

        def forward(self, x: Tensor) -> Any:
            seen: Any = self.linear.weight
            while torch._C._functorch.is_functorch_wrapped_tensor(seen):
                seen = torch._C._functorch.get_unwrapped(seen)
            self.total = self.total + seen.detach().flatten()[0]  # type: ignore[has-type]  # registered
            return self.linear(x)

    module = Leaks(total=torch.zeros((), dtype=torch.float64), mask=torch.tensor([-float("inf")]))
    with pytest.warns(l2path.EngineWarning, match="the buffer .total. of a vmapped step differs"):
        assert train(module).engine.kind == "loop"


def test_scalar_and_empty_parameters() -> None:
    class Scaled(With):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.nothing = nn.Parameter(torch.ones(0, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            return self.linear(x) * self.scale + self.nothing.sum()

    result = train(Scaled(), validation=(X, Y), lambdas={"scale": LAMBDAS, "nothing": torch.ones(1, 0, 3)})
    assert result.params["scale"].shape == (4,)
    assert str(result)
    assert result.weight_norms()["scale"].shape == (4,)
    Scaled().load_state_dict(result.best.state_dict(), strict=True)


class SkipsLayers(With):
    """Leaves out a layer at random (LayerDrop, stochastic depth): at step 0 of seed 0 it does."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped, self.spare = nn.Linear(4, 4).double(), nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.skipped(x) if self.training and torch.rand([]) < 0.5 else x)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_layer_left_out_at_random_is_not_frozen(engine: Literal["auto", "loop"]) -> None:
    draws = [torch.rand([], generator=torch.Generator().manual_seed(l2path.step_seed(0, t))) < 0.5 for t in range(8)]
    assert not draws[0]
    assert any(draws[1:])
    module = SkipsLayers()
    with pytest.warns(l2path.UnusedParameterWarning, match=r"depend on \['spare.weight', 'spare.bias'\]"):
        result = train(module, engine=engine)
    assert result.engine.kind == ("loop" if engine == "loop" else "vmap")

    # By hand: the penalty counts at every step, whether the layer was left out or not.
    weights = [p for name, p in module.named_parameters() if not name.startswith("spare")]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    steps = iter(range(8))
    with torch.random.fork_rng(devices=[]):
        for epoch in range(2):
            for rows in l2path.data_order(20, 0, epoch).split(6):
                torch.manual_seed(l2path.step_seed(0, next(steps)))
                optimizer.zero_grad()
                (F.mse_loss(module(X[rows]), Y[rows]) + 0.15 * sum(w.square().sum() for w in weights)).backward()
                optimizer.step()
    for name, p in module.named_parameters():
        if not name.startswith("spare"):
            assert_trees_close(result.params[name][0], p, 1e-12, where=name)


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), random.random])
def test_random_numbers_from_elsewhere_than_torch_are_told(draw: Callable[[], float]) -> None:
    class Noisy(With):
        def forward(self, x: Tensor) -> Any:
            return self.linear(x) + draw()

    before = np.random.get_state(), random.getstate()
    try:
        with pytest.warns(l2path.ModuleStateWarning, match="from NumPy or from Python's random, which are not seeded"):
            train(Noisy(), engine="loop")
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def test_outputs_with_one_number_for_a_batch() -> None:
    class Auxiliary(With):
        def forward(self, x: Tensor) -> Any:
            return self.linear(x), self.linear(x).square().mean()

    def loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[0], targets) + 0.1 * outputs[1]

    loader = DataLoader(TensorDataset(X, Y), batch_size=7)
    result = train(Auxiliary(), loss_fn=loss, validation=loader)
    whole = train(Auxiliary(), loss_fn=loss, validation=(X, Y))
    # The mean of squares over the batches, weighted by their rows, is the mean over all rows.
    assert_trees_close(result.history["val_loss"], whole.history["val_loss"], 1e-12)


def test_a_factory_of_unequal_modules_is_refused_before_training() -> None:
    widths = iter([3, 5])

    def factory() -> nn.Module:
        width = next(widths)
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1)).double()

    with pytest.raises(l2path.ArgumentError, match=r"module: got a callable whose modules for seeds 0 and 1 differ"):
        train(factory, seeds=(0, 1))


def test_one_copy_of_the_weights_serves_all_seeds_of_a_module() -> None:
    module = With()
    module.linear.bias.requires_grad_(False)
    result = train(module, seeds=(0, 1, 2))
    pairs = list(result.functionals.values())
    frozen = {id(fn.frozen["linear.bias"]) for pair in pairs for fn in pair}
    assert len(frozen) == 1
    stored = {dict(fn.template.named_parameters())["linear.weight"].data_ptr() for pair in pairs for fn in pair}
    assert len(stored) == 1


def test_a_name_that_holds_norm_is_no_normalisation_layer() -> None:
    class NormalHead(nn.Linear):
        """No normalisation."""

    class TinyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    module = nn.ModuleDict({"head": NormalHead(2, 2), "norm": TinyRMSNorm(), "bn": nn.BatchNorm3d(2)})
    found = l2path.expand_lambdas(module, l2path.weights_only(0.5))
    assert [name for name, value in found.items() if value > 0] == ["head.weight"]


# --- data and losses --------------------------------------------------------------------------------------------------


class Hundredfold(TensorDataset):
    """A TensorDataset with a __getitem__ of its own."""

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        x, y = (tensor[index] for tensor in self.tensors)
        return x * 0.1, y


def test_a_subclass_of_tensor_dataset_keeps_its_getitem() -> None:
    expected = train(data=(X * 0.1, Y)).params
    assert_trees_close(train(data=Hundredfold(X, Y)).params, expected, 1e-12)


def test_a_loss_that_works_in_place_spoils_nothing() -> None:
    def halved(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.mul_(0.5))

    expected = train(data=(X, Y * 0.5)).params
    for engine in ("vmap", "loop"):
        assert_trees_close(train(loss_fn=halved, engine=engine).params, expected, 1e-12)


def test_targets_of_none_keep_the_finished_run() -> None:
    def loss(outputs: Tensor, targets: None) -> Tensor:
        return (outputs - 1).square().mean()

    result = train(data=(X, None), loss_fn=loss, validation=(X, None))
    assert result.complete
    assert np.isfinite(result.best.score)


def test_trouble_with_the_uncertainty_never_loses_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("l2path.path.rows.row_scores", fails)
    result = train(validation=(X, Y))
    assert result.uncertainty.reason == "RuntimeError: out of memory"
    assert "No standard errors: RuntimeError: out of memory." in str(result)


def test_full_loss_sees_the_parameters_that_were_frozen_as_unused() -> None:
    class Spare(With):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2).double()

    module = Spare()
    fn = l2path.functionalize(module)

    def loss(params: Any, buffers: Any, batch: Any) -> tuple[Tensor, None]:
        return F.mse_loss(fn.apply(params, buffers, batch[0])[0], batch[1]), None

    with pytest.warns(l2path.UnusedParameterWarning, match=r"spare\.weight"):
        result = train(module, loss_fn=l2path.full_loss(loss))
    assert_trees_close(result.params["linear.weight"], train().params["weight"], 1e-12)


@pytest.mark.parametrize("what", ["lambdas", "lr", "sweep"])
def test_hyperparameters_may_carry_a_graph(what: str) -> None:
    def leaf(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    changes: dict[str, dict[str, Any]] = {
        "lambdas": {"lambdas": leaf(LAMBDAS)},
        "lr": {"optimizer": l2path.sgd(lr=leaf(0.05))},
        "sweep": {"sweep": {"lr": leaf([0.05])}},
    }
    result = train(**changes[what])
    assert_trees_close(result.params["weight"], train().params["weight"], 1e-6)
    assert not result.params["weight"].requires_grad


def test_a_one_row_last_batch_of_a_loader_is_an_error_before_training() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    loader = DataLoader(TensorDataset(X[:17], Y[:17]), batch_size=8)
    with pytest.raises(l2path.ArgumentError, match="batch_size: got 8 with 17 rows: a batch of one row meets '1'"):
        train(module, loader, batch_size=None)
    train(module, DataLoader(TensorDataset(X[:17], Y[:17]), batch_size=8, drop_last=True), batch_size=None)


class OneShot(IterableDataset[Any]):
    """Rows that can be read once."""

    def __init__(self) -> None:
        self.rows = zip(X, Y, strict=True)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


def test_a_one_shot_stream_says_so() -> None:
    with pytest.raises(l2path.ArgumentError, match=r"data: got a stream without batches.*read once only"):
        train(data=OneShot())
    with pytest.raises(l2path.ArgumentError, match=r"validation: got a stream without batches.*read once only"):
        train(validation=DataLoader(OneShot(), batch_size=6))


def test_an_anchor_may_name_parameters_that_turn_out_unused() -> None:
    class Spare(With):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))

    module = Spare()
    anchor = {name: p.detach() for name, p in module.named_parameters()}
    with pytest.warns(l2path.UnusedParameterWarning):
        result = train(module, anchor=anchor)
    assert "spare" not in result.params


def test_lambda_paths_beside_a_single_decay() -> None:
    result = train(
        optimizer=l2path.adamw(lr=0.01, decay=0.1),
        lambdas={"weight": [1.0, 0.5, 0.1], "bias": [0.1, 0.05, 0.01]},
        sweep={"decay": [5.0]},
        validation=(X, Y),
    )
    expected = np.array([4 * 1.0 + 0.1, 4 * 0.5 + 0.05, 4 * 0.1 + 0.01]) / 5
    assert result.path_values is not None
    assert_trees_close(result.path_values, expected, 1e-12)


def test_a_best_momentum_on_the_edge_comes_without_a_grid() -> None:
    with pytest.warns(l2path.BoundaryWarning, match=r"best momentum, 0\.\d+, is the (high|low) end of the grid$"):
        l2path.batch_train(
            linear(),
            (X, Y),
            loss_fn=F.mse_loss,
            optimizer=l2path.sgd(lr=0.01, momentum=0.9),
            sweep={"momentum": [0.1, 0.5, 0.9]},
            epochs=3,
            validation=(X, Y),
        )


# --- interrupts raised by the user's own code -------------------------------------------------------------------------


def count(module: nn.Module, _: Any) -> None:
    module.steps.add_(1)  # type: ignore[operator]  # a buffer


@pytest.mark.parametrize("at", range(85, 100))
def test_an_interrupt_out_of_the_loss_leaves_all_members_at_one_step(at: int) -> None:
    """While members are trained, or scored."""
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return F.mse_loss(outputs, targets)

    module = With(steps=torch.zeros((), dtype=torch.int64))
    module.register_forward_pre_hook(count)
    result = train(module, loss_fn=loss, epochs=60, engine="loop", member_chunk=1, validation=(X, Y))
    assert not result.complete
    assert len(set(result.buffers["steps"].tolist())) == 1
    expected = [F.mse_loss(o, Y).item() for o in result.predict(X)]
    assert_trees_close(result.history["val_loss"][-1].tolist(), expected, 1e-12)


class Interrupts(Dataset[Any]):
    """Raises while it is read, once."""

    reads = 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if self.reads == 130:
            raise KeyboardInterrupt
        return X[index], Y[index]


def test_an_interrupt_out_of_the_data_scores_the_weights_that_it_returns() -> None:
    result = train(data=Interrupts(), epochs=30, validation=(X, Y))
    assert not result.complete
    expected = [F.mse_loss(o, Y).item() for o in result.predict(X)]
    assert_trees_close(result.history["val_loss"][-1].tolist(), expected, 1e-12)


def test_cuda_seeds_queued_for_later_are_left_alone() -> None:
    torch.manual_seed(42)
    before = torch.cuda._lazy_seed_tracker.manual_seed_all_cb
    result = train(lambda: nn.Linear(4, 1).double(), validation=(X, Y))
    result.predict(X)
    assert torch.cuda._lazy_seed_tracker.manual_seed_all_cb is before


def test_it_runs_outside_the_main_thread_and_leaves_the_handler() -> None:
    import threading

    found: list[l2path.PathResult] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: found.append(train()))
    thread.start()
    thread.join()
    assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("validation", [None, (X, Y)])
def test_an_error_half_way_carries_what_was_trained(validation: Any) -> None:
    def hook(event: l2path.EpochEvent) -> None:
        if event.epoch == 3:
            raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full") as caught:
        train(on_epoch=hook, epochs=9, validation=validation)
    partial: l2path.PathResult = caught.value.partial_result  # type: ignore[attr-defined]  # set by batch_train
    assert not partial.complete
    assert any("partial_result" in note for note in caught.value.__notes__)
    assert_trees_close(partial.params, train(epochs=3).params, 1e-12)
    if validation is not None:
        assert partial.best.index in range(len(partial))


class Counting(With):
    """Something that is the same for all members until the third step."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__(calls=torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.calls = self.calls + 1
        return self.later(x) if self.training and int(self.calls) > 2 else self.linear(x)

    def later(self, x: Tensor) -> Any:
        raise NotImplementedError


class ReadsLater(Counting):
    """Reads a whole number that differs between members."""

    def later(self, x: Tensor) -> Any:
        return self.linear(x) * (1 + int((500 * self.linear.weight.detach().sum()).long()) % 3)


class BranchesLater(Counting):
    """Python control flow on what a member computes."""

    def later(self, x: Tensor) -> Any:
        return self.linear(x) * (2 if self.linear.weight.sum() > 0.1 else 1)


class SetsAnew(With):
    """A buffer that is set anew, and not written into."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__(total=torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.total = 0.5 * self.total + self.linear.weight.detach().sum()
        return self.linear(x) + self.total


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_buffers_that_are_set_anew_are_kept(engine: Literal["vmap", "loop"]) -> None:
    module = SetsAnew()
    result = train(module, engine=engine, batch_size=None, optimizer=l2path.sgd(lr=0.0), epochs=3)
    want = module.linear.weight.detach().sum() * (1 + 0.5 + 0.25)
    assert_trees_close(result.buffers["total"], want.expand(len(LAMBDAS)), 1e-14)


@pytest.mark.parametrize("kind", [ReadsLater, BranchesLater])
@pytest.mark.parametrize("chunk", [2, 4])
def test_what_stops_being_batchable_is_looped_from_there_on(kind: type[Counting], chunk: int) -> None:
    alone = train(kind(), engine="loop", validation=(X, Y))
    with pytest.warns(l2path.EngineWarning, match=r"one after the other: vmap failed at step \d+: .*before are right"):
        result = train(kind(), member_chunk=chunk, validation=(X, Y))
    assert (result.engine.kind, result.eval_kind, result.complete) == ("loop", "loop", True)
    assert_trees_close(result.params, alone.params, 1e-12)
    assert_trees_close(result.buffers, alone.buffers, 0.0)
    assert_trees_close(dict(result.history), dict(alone.history), 1e-12)
    assert_trees_close(result.predict(X), alone.predict(X), 1e-12)


def test_vmap_that_was_asked_for_fails_and_says_so() -> None:
    with pytest.raises(l2path.ArgumentError, match="pass engine='loop'") as caught:
        train(ReadsLater(), engine="vmap")
    assert caught.value.partial_result.engine.kind == "vmap"  # type: ignore[attr-defined]


class ReadsInEval(With):
    """Reads what members compute, in eval mode and for rows beyond 3 alone."""

    def forward(self, x: Tensor) -> Any:
        out = self.linear(x)
        return out if self.training or float(x.max()) < 3 else out * (1 + float(out.sum()) % 2)


def test_evaluation_that_stops_being_batchable_is_looped() -> None:
    far = X + 3 * (X.max() == X)
    with pytest.warns(
        l2path.EngineWarning, match="in eval mode are computed one member after the other: forward reads"
    ):
        result = train(ReadsInEval(), validation=(far, Y))
    alone = train(ReadsInEval(), engine="loop", validation=(far, Y))
    assert (result.engine.kind, result.eval_kind) == ("vmap", "loop")
    assert_trees_close(result.scores, alone.scores, 1e-12)
    near = train(ReadsInEval(), validation=(X, Y))
    assert near.eval_kind == "vmap"
    with pytest.warns(l2path.EngineWarning, match="one member after the other"):
        predicted = near.predict(far)
    assert_trees_close(predicted, alone.predict(far), 1e-12)


class ClosesOverItself(nn.Module):
    """Functions that keep the module they were made in, which deepcopy leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = linear(), nn.BatchNorm1d(4).double()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.first: Any = lambda x: self.norm(x) * self.scale
        self.others: Any = {"last": [lambda x: self.linear(self.first(x))]}

    def forward(self, x: Tensor) -> Any:
        return self.others["last"][0](x)


class Plain(ClosesOverItself):
    """The same without closures."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.norm(x) * self.scale)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_closures_over_the_module_are_of_the_copy(engine: Any) -> None:
    module = ClosesOverItself()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = train(module, engine=engine, validation=(X, Y))
    alone = train(Plain(), engine="loop", validation=(X, Y))
    assert_trees_close(module.state_dict(), before, 0.0)
    assert_trees_close((result.params, result.buffers), (alone.params, alone.buffers), 1e-12)
    assert_trees_close(result.scores, alone.scores, 1e-12)
    member, plain = result.member(1).module().eval(), alone.member(1).module().eval()
    assert_trees_close(member(X).detach(), plain(X).detach(), 1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_validation_losses_that_draw_draw_the_same_for_all_members(chunk: int) -> None:
    result = train(
        loss_fn=lambda o, t: F.mse_loss(F.dropout(o), t), lambdas=[0.1] * 4, validation=(X, Y), member_chunk=chunk
    )
    assert len(set(result.scores.tolist())) == 1


def test_a_metric_sees_every_validation_row_once() -> None:
    wide = nn.Sequential(nn.Linear(4, 3000), nn.ReLU(), nn.Linear(3000, 1)).double()  # too wide for all rows at once
    rows = torch.cat([X] * 60), torch.cat([Y] * 60)
    result = train(
        wide, optimizer=l2path.sgd(lr=0.0), validation=rows, metrics={"rows": lambda o, t: len(o)}, lambdas=[0.1, 0.0]
    )
    assert result.history["val_rows"][-1].tolist() == [1200.0, 1200.0]
    with torch.no_grad():
        squares = (wide(rows[0]) - rows[1]) ** 2
    errors = result.uncertainty.standard_errors
    assert errors is not None
    assert_trees_close(errors[0].item(), (squares.std() / 1200**0.5).item(), 1e-9)


class WithState(nn.Module):
    """Outputs, and the last state of a recurrent layer: its first axis is layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 3, num_layers=3, batch_first=True).double(), nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Any:
        steps, state = self.rnn(x.unsqueeze(1))
        return self.head(steps[:, -1]), state


def test_outputs_without_rows_first_are_not_joined() -> None:
    def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[0], targets)

    result = train(WithState(), loss_fn=loss_fn, validation=(X, Y))  # in one batch there is nothing to join
    with pytest.raises(l2path.ArgumentError, match=r"outputs: got shapes .*rows along the first axis"):
        result.predict(X, batch_size=10)
    loader: DataLoader[Any] = DataLoader(TensorDataset(X, Y), batch_size=10)
    with pytest.raises(l2path.ArgumentError, match="rows along the first axis"):
        train(WithState(), loss_fn=loss_fn, validation=loader)


class Packs(nn.Module):
    """Sequences that have to come sorted by their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 3, batch_first=True).double(), nn.Linear(3, 1).double()

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.rnn(packed)[1][0])


@pytest.mark.parametrize(
    ("lengths", "message"), [([1, 2], "sorted in decreasing order"), ([2, 0], "greater than 0"), ([2], "batch_size")]
)
def test_lengths_are_checked_as_torch_checks_them(lengths: list[int], message: str) -> None:
    x, y = X[:4].reshape(2, 2, 4), Y[:2]
    batches = [((x, torch.tensor(found)), y) for found in ([2, 1], lengths)]
    with pytest.raises(RuntimeError, match=message) as caught:
        train(Packs(), DataLoader(batches, batch_size=None), batch_size=None)  # type: ignore[arg-type]
    partial = caught.value.partial_result  # type: ignore[attr-defined]
    assert (partial.engine.kind, partial.eval_kind) == ("loop", "loop")
    assert partial.predict((x, torch.tensor([2, 1]))).shape == (4, 2, 1)


class WithACompiledPart(nn.Module):
    """A part that was compiled by the caller, as one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager", fullgraph=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.part(x))
        return out


@pytest.mark.usefixtures("fresh_compiler")  # what ran without the compiler once is left alone
@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_part_that_is_compiled_already(engine: Any) -> None:
    """The compiler does not read what looks at operations meanwhile (:mod:`l2path.dispatch`)."""
    x, y = torch.randn(12, 4), torch.randn(12, 1)
    options: dict[str, Any] = {"loss_fn": F.mse_loss, "optimizer": l2path.sgd(lr=0.1), "lambdas": [0.0, 0.1]}
    module = WithACompiledPart()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        optimizer.step()
    found = l2path.batch_train(WithACompiledPart(), (x, y), epochs=2, engine=engine, **options)
    assert_trees_close(found.member(1).state_dict(), module.state_dict(), 1e-5)
