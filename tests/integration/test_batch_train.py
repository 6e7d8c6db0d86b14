"""``batch_train`` from the outside: choice, hooks, interrupts, divergence, every kind of data."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import l2path
from tests.helpers import assert_trees_close
from tests.models import BATCH, classes, handwritten, noisy, smooth

GRID = l2path.lambda_grid(1e-4, 0.3, 5)
SGD = l2path.sgd(lr=0.05, momentum=0.9)


def train(**changes: Any) -> l2path.PathResult:
    settings: dict[str, Any] = {
        "module": smooth(), "data": classes(), "loss_fn": F.cross_entropy, "optimizer": SGD, "lambdas": GRID,
        "epochs": 4, "batch_size": BATCH,
    }  # fmt: skip
    settings |= changes
    return l2path.batch_train(settings.pop("module"), settings.pop("data"), **settings)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).double().mean()


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_shapes_and_sums() -> None:
    result = train(validation=classes(40, 2), metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)})
    assert set(result.history) == {"loss", "penalty", "objective", "val_loss", "val_accuracy"}
    assert all(rows.shape == (4, 5) for rows in result.history.values())
    history = result.history
    assert_trees_close(history["objective"], history["loss"] + history["penalty"], 1e-14)
    assert result.params["0.weight"].shape == (5, 8, 5)
    assert_trees_close(result.lambdas, GRID, 0.0)
    assert result.predict(classes(40, 2)[0]).shape == (5, 40, 3)
    assert len(result) == 5
    assert result.complete


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_predict_and_state_dict_are_the_members_own() -> None:
    result = train(module=noisy(), seeds=(2, 7), validation=classes(40, 2), member_chunk=2)
    x, y = classes(40, 2)
    outputs = result.predict(x, batch_size=7)
    for k in range(len(result)):
        module = noisy(99).eval()
        loaded = module.load_state_dict(result.member(k).state_dict(), strict=True)
        assert str(loaded) == "<All keys matched successfully>"
        expected = module(x).detach()
        assert_trees_close(outputs[k], expected, 1e-12)
        assert_trees_close(result.member(k).module().eval()(x).detach(), expected, 1e-12)
        assert_trees_close(float(result.history["val_loss"][-1, k]), F.cross_entropy(expected, y).item(), 1e-12)
    assert_trees_close(result.predict(x, members=[8, 1]), outputs[[8, 1]], 1e-12)
    assert_trees_close(result.predict(x.numpy(), members=[-1]), outputs[-1:], 1e-12)
    with pytest.raises(l2path.ArgumentError, match="member: got 10"):
        result.predict(x, members=[10])


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_select_decides_and_knows_its_direction() -> None:
    metrics = {
        "accuracy": l2path.Metric(accuracy, greater_is_better=True),
        "error": l2path.Metric(lambda o, t: 1 - float(accuracy(o, t))),
        "bare": lambda o, t: 1.0,
    }
    by_accuracy = train(validation=classes(40, 2), metrics=metrics, select="accuracy")
    by_error = train(validation=classes(40, 2), metrics=metrics, select="val_error")
    with pytest.raises(l2path.ArgumentError, match=r"select: got 'bare', a bare function; expected .* which way"):
        train(validation=classes(40, 2), metrics=metrics, select="bare")
    best = float(by_accuracy.history["val_accuracy"][-1].max())
    assert by_accuracy.best.score == best
    assert by_error.best.index == by_accuracy.best.index
    tied = [k for k in range(5) if float(by_accuracy.history["val_accuracy"][-1, k]) == best]
    assert by_accuracy.best.index == tied[0]  # the grid starts with the largest lambda


def test_ties_go_to_the_largest_lambda_whatever_the_order() -> None:
    constant = l2path.Metric(lambda o, t: 1.0)
    for lambdas in ([0.1, 0.3, 0.2], {"0.*": [0.1, 0.3, 0.2], "*": [0.2, 0.3, 0.2]}):
        result = train(lambdas=lambdas, validation=classes(9, 2), metrics={"one": constant}, select="one")
        assert result.best.index == 1
        assert result.boundary is None  # where all are the same no edge is better
    result = train(
        optimizer=l2path.adamw(lr=0.01),
        lambdas=None,
        sweep={"decay": [0.1, 0.5, 0.2]},
        validation=classes(9, 2),
        metrics={"one": constant},
        select="one",
    )
    assert result.best.hyper == {"decay": 0.5}


def test_boundary_warning_carries_the_grid_to_try_next() -> None:
    with pytest.warns(
        l2path.BoundaryWarning, match=r"the best lambda, 0\.01, is the low end.*grid\(0\.0001, 0\.32, 10\)"
    ):
        result = train(lambdas=l2path.lambda_grid(0.01, 10.0, 3), validation=classes(40, 2), epochs=10)
    assert "Careful: the best lambda" in str(result)


def test_lambda_zero_at_the_end_is_no_boundary() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(lambdas=[10.0, 1.0, 0.0], validation=classes(40, 2), epochs=10)
    assert result.best.lambdas == 0.0
    assert result.boundary is None


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_two_axes_have_no_boundary_check_and_say_so() -> None:
    result = train(sweep={"lr": [0.01, 0.05]}, validation=classes(40, 2))
    assert result.cvm.shape == (2, 5)
    assert result.path_values is None
    assert "not one-dimensional" in str(result)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_paired_standard_errors_by_hand() -> None:
    result = train(validation=classes(40, 2), epochs=8)
    x, y = classes(40, 2)
    rows = np.stack([F.cross_entropy(o, y, reduction="none").numpy() for o in result.predict(x)])
    best = result.best.index
    offset = rows - rows[best]
    sure = result.uncertainty
    assert_trees_close(sure.standard_errors, rows.std(1, ddof=1) / np.sqrt(40), 1e-10)
    assert_trees_close(sure.differences, offset.mean(1), 1e-10)
    assert_trees_close(sure.difference_errors, offset.std(1, ddof=1) / np.sqrt(40), 1e-10)
    # Pairing is worth it: close neighbours are compared far more sharply than their scores are known.
    assert sure.difference_errors is not None
    assert sure.standard_errors is not None
    assert float(sure.difference_errors[best - 1]) < 0.5 * float(sure.standard_errors[best - 1])


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_no_standard_errors_where_rows_do_not_average_to_the_score() -> None:
    spread = l2path.Metric(lambda o, t: o.std())
    result = train(validation=classes(40, 2), metrics={"spread": spread}, select="spread")
    assert result.uncertainty.standard_errors is None
    assert "not the mean over its rows" in str(result)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_a_metric_of_numpy_has_standard_errors_too() -> None:
    hits = l2path.Metric(lambda o, t: np.mean(o.numpy().argmax(1) == t.numpy()), greater_is_better=True)
    result = train(validation=classes(40, 2), metrics={"hits": hits}, select="hits")
    p = result.scores
    assert_trees_close(result.uncertainty.standard_errors, np.sqrt(p * (1 - p) / 39), 1e-10)


# --- leaving early ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_on_epoch_sees_everything_and_can_let_members_go() -> None:
    events: list[l2path.EpochEvent] = []
    weights: list[Tensor] = []

    def hook(event: l2path.EpochEvent) -> Any:
        events.append(event)
        weights.append(event.params["0.weight"])
        return None if event.epoch != 2 else [True, False, True, True, False]

    result = train(on_epoch=hook, validation=classes(40, 2))
    full = train(validation=classes(40, 2))
    assert [e.epoch for e in events] == [1, 2, 3, 4]
    assert [e.step for e in events] == [6, 12, 18, 24]
    assert events[3].active.tolist() == [True, False, True, True, False]
    assert result.status == ("trained", "stopped", "trained", "trained", "stopped")
    assert result.epochs_trained == (4, 2, 4, 4, 2)
    assert bool(torch.isnan(result.history["loss"][2:, 1]).all())
    for name in full.history:
        assert_trees_close(result.history[name][:, [0, 2, 3]], full.history[name][:, [0, 2, 3]], 1e-12)
    assert_trees_close(result.params["0.weight"][[0, 2, 3]], full.params["0.weight"][[0, 2, 3]], 1e-12)
    # A stopped member keeps the weights of its last epoch, and its score from then.
    assert_trees_close(result.params["0.weight"][1], weights[1][1], 0.0)
    assert result.scores[1] == float(result.history["val_loss"][1, 1])
    assert_trees_close(weights[3], result.params["0.weight"], 0.0)


def test_training_ends_when_no_member_is_left() -> None:
    result = train(on_epoch=lambda event: ~event.active)
    assert result.status == ("stopped",) * 5
    assert len(result.history["loss"]) == 1


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_an_interrupt_returns_a_valid_result(capsys: pytest.CaptureFixture[str]) -> None:
    def hook(event: l2path.EpochEvent) -> None:
        if event.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(l2path.IncompleteWarning, match="interrupted after 2 of 4 epochs"):
        result = train(on_epoch=hook, validation=classes(40, 2))
    assert not result.complete
    assert len(result.history["val_loss"]) == 2
    assert "Incomplete: interrupted after 2 epochs" in str(result)
    assert_trees_close(result.params, train(epochs=2).params, 0.0)
    assert result.best.index == int(result.history["val_loss"][-1].argmin())
    assert signal.getsignal(signal.SIGINT) is before
    assert "once more to stop at once" in capsys.readouterr().err


def test_an_interrupt_within_an_epoch_scores_the_weights_that_it_returns() -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 60:
            signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        warnings.simplefilter("ignore", l2path.IncompleteWarning)
        result = train(loss_fn=loss, epochs=50, batch_size=2, validation=classes(40, 2), engine="loop")
    assert not result.complete
    x, y = classes(40, 2)
    expected = [F.cross_entropy(o, y).item() for o in result.predict(x)]
    assert_trees_close(result.history["val_loss"][-1].tolist(), expected, 1e-12)


def test_a_second_interrupt_raises() -> None:
    def hook(event: l2path.EpochEvent) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(on_epoch=hook)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning", "ignore::l2path.StabilityWarning")
def test_a_diverging_member_is_isolated(engine: Any) -> None:
    rates = [0.05, 1e200, 0.02]
    settings: dict[str, Any] = {
        "module": noisy(), "optimizer": l2path.sgd(lr=0.05), "lambdas": [0.01], "validation": classes(40, 2),
        "engine": engine,
    }  # fmt: skip
    with pytest.warns(l2path.DivergenceWarning, match=r"1 of 3 members diverged .* \[1\], the first at step"):
        result = train(sweep={"lr": rates}, **settings)
    healthy = train(sweep={"lr": [0.05, 0.02]}, **settings)
    assert result.status == ("trained", "diverged", "trained")
    step = result.diverged_at[1]
    assert step is not None
    assert 0 < step < 6
    for name in healthy.history:
        assert_trees_close(result.history[name][:, [0, 2]], healthy.history[name], 1e-10)
        assert bool(torch.isnan(result.history[name][:, 1]).all())
    assert_trees_close(result.params["0.weight"][[0, 2]], healthy.params["0.weight"], 1e-10)
    assert np.isnan(result.scores[1])
    assert result.best.index != 1
    # The last finite state, from a loop that stops one step before.
    module = noisy()
    optimizer = torch.optim.SGD(module.parameters(), 1e200, weight_decay=0.01)
    x, y = classes()
    order = l2path.data_order(len(x), 0, 0)
    for i in range(step):
        torch.manual_seed(l2path.step_seed(0, i))
        rows = order[i * BATCH : (i + 1) * BATCH]
        optimizer.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    assert_trees_close(result.member(1).params, dict(module.named_parameters()), 1e-10)


@pytest.mark.filterwarnings("ignore::l2path.DivergenceWarning", "ignore::l2path.StabilityWarning")
def test_no_choice_when_every_member_diverged() -> None:
    result = train(optimizer=l2path.sgd(lr=1e200), validation=classes(40, 2))
    with pytest.raises(l2path.NoScoreError, match="no member has a finite val_loss"):
        _ = result.best
    assert "No member has a finite val_loss" in str(result)


# --- parameters -------------------------------------------------------------------------------------------------------


class Spare(nn.Module):
    """A model with a parameter that it never uses, a frozen one, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)
        self.head.bias.requires_grad_(False)
        self.spare = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        assert isinstance(out, Tensor)
        return out


def test_unused_parameters_are_left_as_torch_leaves_them() -> None:
    with pytest.warns(l2path.UnusedParameterWarning, match="'spare'"):
        result = train(module=Spare())
    assert "spare" not in result.params
    assert result.member(0).state_dict()["spare"].tolist() == [1, 1, 1]
    assert "Not trained: head.bias, spare" in str(result)
    kept = train(module=Spare(), unused="train")
    module, _ = handwritten(
        Spare, classes(), lambda p: torch.optim.SGD([q for q in p if q.requires_grad], 0.05, momentum=0.9),
        {n: GRID[0] for n in kept.params}, epochs=4,
    )  # fmt: skip
    assert_trees_close(kept.member(0).state_dict(), module.state_dict(), 1e-10)
    assert float(kept.params["spare"][0, 0]) != 1


@pytest.mark.filterwarnings("ignore::l2path.UnusedParameterWarning")
def test_tied_and_frozen_parameters() -> None:
    result = train(module=Spare(), lambdas={"second.weight": [0.3, 0.1], "*": 0.01})
    state = result.member(0).state_dict()
    assert_trees_close(state["first.weight"], state["second.weight"], 0.0)
    assert_trees_close(state["head.bias"], Spare().state_dict()["head.bias"], 0.0)
    Spare().load_state_dict(state, strict=True)
    for k, strength in enumerate([0.3, 0.1]):
        named = {n: 0.01 for n in ("first.bias", "second.bias", "head.weight")} | {"first.weight": strength}
        module, _ = handwritten(
            Spare, classes(), lambda p: torch.optim.SGD([q for q in p if q.requires_grad], 0.05, momentum=0.9), named,
            epochs=4,
        )  # fmt: skip
        assert_trees_close(result.member(k).state_dict(), module.state_dict(), 1e-10)


@pytest.mark.filterwarnings("ignore::l2path.StabilityWarning")
def test_anchor_pulls_towards_the_start() -> None:
    start = smooth().state_dict()
    result = train(lambdas=[20.0, 0.0], anchor="init", optimizer=l2path.sgd(lr=0.04), epochs=10)
    named = train(lambdas=[20.0, 0.0], anchor=start, optimizer=l2path.sgd(lr=0.04), epochs=10)
    assert_trees_close(result.params, named.params, 0.0)
    far = [float((result.params["0.weight"][k] - start["0.weight"]).norm()) for k in (0, 1)]
    assert far[0] < 0.2 * far[1]


# --- data -------------------------------------------------------------------------------------------------------------


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset, optionally with noise drawn from torch's default generator."""

    def __init__(self, noise: float = 0.0) -> None:
        self.x, self.y = classes()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + self.noise * torch.randn(5, dtype=torch.float64), self.y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The rows in their order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*classes(), strict=True)


def test_every_kind_of_data_gives_the_same_run() -> None:
    x, y = classes()
    expected = train().params
    for data in ((x.numpy(), y.numpy()), [x, y], TensorDataset(x, y), Rows()):
        assert_trees_close(train(data=data).params, expected, 1e-12)
    ordered = train(shuffle=False).params
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    assert_trees_close(train(data=loader, batch_size=None).params, ordered, 1e-12)
    assert_trees_close(train(data=Stream()).params, ordered, 1e-12)


def test_random_augmentation_does_not_depend_on_how_batches_are_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(module=noisy(), data=Rows(0.3), epochs=3)
    monkeypatch.setattr("l2path.path.driver.BLOCK_BYTES", 1)  # one batch in each block
    again = train(module=noisy(), data=Rows(0.3), epochs=3, member_chunk=2)
    assert_trees_close(again.params, first.params, 1e-10)
    alone = train(module=noisy(), data=Rows(0.3), epochs=3, lambdas=GRID[3:4])
    assert_trees_close(alone.params["0.weight"][0], first.params["0.weight"][3], 1e-10)


def test_a_shuffling_loader_is_read_once_for_all_members() -> None:
    reads = 0

    class Counted(Rows):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            nonlocal reads
            reads += 1
            return super().__getitem__(index)

    loader = DataLoader(Counted(), batch_size=BATCH, shuffle=True)
    train(data=loader, batch_size=None, epochs=3, seeds=(0, 1), member_chunk=2)
    assert reads == 3 * len(Rows())


def test_inputs_as_tuple_and_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(5, 3).double()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out = self.linear(a * b)
            assert isinstance(out, Tensor)
            return out

    x, y = classes()
    first = train(module=Two(), data=((x, x), y))
    second = train(module=Two(), data=({"b": x, "a": x}, y))
    plain = train(module=Two(), data=((x * x, torch.ones_like(x)), y))
    assert_trees_close(second.params, first.params, 1e-12)
    assert_trees_close(plain.params, first.params, 1e-12)
    assert first.predict((x, x)).shape == (5, len(x), 3)
    assert_trees_close(first.predict({"a": x, "b": x}), first.predict((x, x)), 1e-12)


def test_full_loss_equals_loss_fn() -> None:
    module = noisy()
    fn = l2path.functionalize(module)
    evaluate = fn.evaluation()

    def loss(params: Any, buffers: Any, batch: Any) -> tuple[Tensor, Any]:
        outputs, new = fn.apply(params, buffers, batch[0])
        return F.cross_entropy(outputs, batch[1]), {"buffers": new}

    def score(params: Any, buffers: Any, batch: Any) -> tuple[Tensor, Any]:
        return F.cross_entropy(evaluate.apply(params, buffers, batch[0])[0], batch[1]), None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        expected = train(module=module, validation=classes(40, 2))
        result = train(module=module, loss_fn=l2path.full_loss(loss, evaluate=score), validation=classes(40, 2))
    assert_trees_close((result.params, result.buffers), (expected.params, expected.buffers), 1e-10)
    assert_trees_close(result.history, expected.history, 1e-10)
    assert result.uncertainty.standard_errors is None
    assert "full_loss" in (result.uncertainty.reason or "")


# --- engine -----------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Control flow on values: fails under vmap, works in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = smooth()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        assert isinstance(out, Tensor)
        return out * 2 if out.mean() > 0 else out


def test_what_cannot_be_vmapped_is_looped_and_said() -> None:
    with pytest.warns(l2path.EngineWarning, match="one after the other: vmap fails: .*data-dependent control flow"):
        result = train(module=Branches())
    assert result.engine.kind == "loop"
    module, _ = handwritten(
        Branches, classes(), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        {n: GRID[2] for n in result.params}, epochs=4,
    )  # fmt: skip
    assert_trees_close(result.member(2).params, dict(module.named_parameters()), 1e-10)
    with pytest.raises(l2path.ArgumentError, match="engine: got 'vmap', but vmap fails"):
        train(module=Branches(), engine="vmap")


class Recurrent(nn.Module):
    """torch cannot vmap an LSTM without its gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(2, 4, batch_first=True, num_layers=2, bidirectional=True, dropout=0.2).double()
        self.head = nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.lstm(x)[0][:, -1])
        assert isinstance(out, Tensor)
        return out


@pytest.mark.parametrize("with_validation", [False, True])
def test_evaluation_of_an_lstm_is_batched_through_its_derivative(with_validation: bool) -> None:
    x = torch.randn(9, 7, 2, generator=torch.Generator().manual_seed(0)).double()
    data = (x, x[:, -1, :1].expand(9, 3) ** 2)
    validation = data if with_validation else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        result = train(module=Recurrent(), data=data, loss_fn=F.mse_loss, validation=validation)
    assert (result.engine.kind, result.eval_kind) == ("vmap", "vjp")
    outputs = result.predict(x)
    for k in range(len(result)):
        expected = result.member(k).module().eval()(x).detach()
        assert_trees_close(outputs[k], expected, 1e-12)
        if with_validation:
            scored = F.mse_loss(expected, data[1]).item()
            assert_trees_close(float(result.history["val_loss"][-1, k]), scored, 1e-12)


def test_evaluation_that_cannot_be_vmapped_is_looped_and_said() -> None:
    class Hard(nn.Module):
        """Branches on values, in eval mode only."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = smooth()

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            assert isinstance(out, Tensor)
            return out if self.training or out.mean() > 0 else 2 * out

    x, _ = classes()
    with pytest.warns(l2path.EngineWarning, match="in eval mode are computed one member after the other: vmap fails"):
        result = train(module=Hard())
    assert (result.engine.kind, result.eval_kind) == ("vmap", "loop")
    assert_trees_close(result.predict(x)[2], result.member(2).module().eval()(x).detach(), 1e-12)


def test_random_masks_that_differ_under_vmap_are_looped() -> None:
    class Transposed(nn.Module):
        """Dropout on a transposed activation: vmapped masks come in another order."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = smooth()

        def forward(self, x: Tensor) -> Tensor:
            out = F.dropout(self.inner[0](x).t(), 0.5, self.training).t()  # type: ignore[index]  # Sequential
            out = self.inner[1:](out)  # type: ignore[index]
            assert isinstance(out, Tensor)
            return out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.EngineWarning)
        result = train(module=Transposed())
    module, _ = handwritten(
        Transposed, classes(), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), {n: GRID[1] for n in result.params},
        epochs=4,
    )  # fmt: skip
    assert_trees_close(result.member(1).params, dict(module.named_parameters()), 1e-10)


# --- what a person sees -----------------------------------------------------------------------------------------------


def test_printed_table() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        result = train(lambdas={"0.weight": GRID, "3.weight": 0.1}, validation=classes(40, 2))
    text = str(result)
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["member", "lambda[0.weight]", "lambda[3.weight]"]
    assert len(lines) >= 1 + 5 + 1
    assert "Lambda 0 for every member: 0.bias, 2.weight, 2.bias, 3.bias." in text
    assert f"member {result.best.index}, lambda" in text
    assert repr(result).startswith("PathResult(5 members, best=Member(")


def test_long_tables_are_cut_around_the_best() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        result = train(lambdas=l2path.lambda_grid(1e-4, 0.3, 100), validation=classes(40, 2), epochs=1)
    rows = [line.split()[0] for line in str(result).splitlines()[1:] if line]
    assert "..." in rows
    assert str(result.best.index) in rows
    assert len(rows) < 40


def test_progress_can_be_switched(capsys: pytest.CaptureFixture[str]) -> None:
    train(epochs=2)
    assert capsys.readouterr().err == ""
    train(epochs=2, progress=True)
    assert "epoch 2/2" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["high", "low"])
def test_following_the_advice_comes_to_an_end(side: str) -> None:
    # The next grid reaches back over the old edge, so that an optimum at it is found to be inside.
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(4)).double()
    y = (x[:, :1] + 2 * torch.randn(30, 1, generator=torch.Generator().manual_seed(5))).double()
    grid = l2path.lambda_grid(1e-4, 1e-3, 3) if side == "high" else l2path.lambda_grid(100.0, 1000.0, 3)
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            result = l2path.batch_train(
                nn.Linear(5, 1).double(),
                (x[:15], y[:15]),
                loss_fn=F.mse_loss,
                optimizer=l2path.adam(lr=0.05),
                lambdas={"weight": grid, "bias": 0.0},
                epochs=150,
                validation=(x[15:], y[15:]),
            )
        if result.boundary is None:
            return
        assert side in result.boundary
        values = result.path_values
        assert values is not None
        near = np.sort(values)[-2 if side == "high" else 1]
        low, high = (near, 100 * values.max()) if side == "high" else (values.min() / 100, near)
        grid = l2path.lambda_grid(float(low), float(high), 10)
    raise AssertionError(f"still at the edge: {result.boundary}")


def test_targets_that_broadcast_are_noticed_in_a_handwritten_loss_too() -> None:
    x, _ = classes()
    wide, narrow = (x, x[:, :1]), (x, x[:, 0])
    torch.manual_seed(0)
    module = nn.Linear(5, 1).double()

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        with pytest.warns(l2path.BroadcastWarning, match=r"data: outputs \[20, 1\] and targets \[20\] broadcast"):
            train(module=module, data=narrow, loss_fn=squares)
        with pytest.warns(l2path.BroadcastWarning, match=r"validation: outputs \[103, 1\] and targets \[103\]"):
            train(module=module, data=wide, validation=narrow, loss_fn=squares)
        with pytest.raises(l2path.ArgumentError, match="validation: got targets that broadcast against the outputs"):
            train(module=module, data=wide, validation=narrow, loss_fn=F.mse_loss)


@pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")
def test_several_seeds_are_summed_up_by_point() -> None:
    result = train(seeds=(0, 1, 2), validation=classes(40, 2))
    lines = str(result).splitlines()
    assert lines[0].split()[:2] == ["members", "lambda"]
    assert len([line for line in lines[1:] if line and line[0] in " 0123456789"]) == 5
    assert "0, 5, 10" in lines[1]
    spread = result.scores.reshape(3, 5)[:, 0]
    assert f"{spread.mean():.4f}" in lines[1]
    assert any(f"Best mean of val_loss over 3 seeds: {result.cvm.min():.4g}" in line for line in lines)
    weights = result.plot().axes[1]
    assert all(np.size(line.get_xdata()) in (2, 5) for line in weights.get_lines())  # 2: the mark of the choice
    norms = result.weight_norms()["0.weight"].reshape(3, 5).mean(0)
    drawn = next(line for line in weights.get_lines() if line.get_label() == "0.weight")
    assert_trees_close(np.asarray(drawn.get_ydata()), norms.flip(0), 1e-12)
