"""What compiled runs begin ahead of time and do for several groups at once changes no result."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import l2path
from l2path.compiled import Compiled
from l2path.data import RowSource
from l2path.engine import Engine
from l2path.functional import functionalize, seed_generators
from l2path.path import evaluation, selfcheck
from l2path.path.evaluation import Metric, Validation, scores_of_outputs
from l2path.path.reading import Reader
from l2path.path.scorer import Scorer
from l2path.path.workers import Workers
from tests.helpers import assert_trees_close
from tests.models import classes

RTOL = 1e-10
TRAIN, VAL = classes(50, seed=1), classes(40, seed=2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning"),
    pytest.mark.filterwarnings("ignore::l2path.DivergenceWarning"),
    pytest.mark.filterwarnings("ignore::l2path.StabilityWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(*, dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), *[nn.Dropout(0.3)] * dropout, nn.Linear(8, 3)).double()


def train(module: nn.Module, **changes: Any) -> l2path.PathResult:
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1, momentum=0.9), "epochs": 12, "batch_size": 8,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 7), "validation": VAL,
        "engine": Engine("compiled", 3, workers=2, steps=2, partial=False),
    }  # fmt: skip
    return l2path.batch_train(module, TRAIN, **(options | changes))


@pytest.mark.parametrize(
    ("changes", "dropout"),
    [
        ({}, False),
        ({}, True),
        ({"early_stopping": l2path.EarlyStopping(patience=2)}, False),
        ({"halving": l2path.SuccessiveHalving(min_epochs=2)}, True),
        ({"lambdas": [1e-4, 1e-3, 1e6, 1e-2, 1e7]}, False),  # two of which diverge
    ],
    ids=["plain", "dropout", "stopping", "halving", "diverging"],
)
def test_nothing_that_is_begun_ahead_changes_a_digit(
    changes: dict[str, Any], dropout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members leave while the next block has begun with them: it is dropped and begun anew."""
    begun: list[bool] = []
    begin = Workers.begin

    def counted(self: Workers, read: Any, chunks: Any) -> None:
        ahead = self.next
        begin(self, read, chunks)
        begun.append(ahead is not None and self.now is ahead)

    monkeypatch.setattr(Workers, "begin", counted)
    found = train(network(dropout=dropout), **changes)
    kept = begun.count(True)
    assert found.engine.kind == "compiled"
    assert kept >= (1 if changes else len(begun) - 1), "blocks are begun ahead"
    if changes:
        assert len({*found.epochs_trained, *found.status}) > 2, "some leave before others"
        assert kept < len(begun) - 1, "those that leave are noticed"
    begun.clear()
    hooked = train(network(dropout=dropout), on_epoch=lambda _: None, **changes)
    assert begun.count(True) < kept, "across epochs nothing is begun before a hook"
    begun.clear()
    monkeypatch.setattr(Reader, "ahead", lambda self: None)
    alone = train(network(dropout=dropout), **changes)
    assert not any(begun)
    for other in (hooked, alone):
        assert other.status == found.status
        assert other.epochs_trained == found.epochs_trained
        assert other.diverged_at == found.diverged_at
        for name, want in found.params.items():
            assert torch.equal(other.params[name], want)
        for name, want in found.history.items():
            assert torch.equal(other.history[name].nan_to_num(-1.0), want.nan_to_num(-1.0))


def test_data_that_are_not_in_memory_are_not_read_ahead() -> None:
    """What somebody else's data do when they are read, they do between the same two steps as ever."""
    events: list[str] = []

    class Rows(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            if row == 0:
                events.append("read")
            return TRAIN[0][row], TRAIN[1][row]

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        events.append("scored")
        return (outputs.argmax(1) == targets).double().mean()

    l2path.batch_train(
        network(), Rows(), loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.1), epochs=3, batch_size=8,
        lambdas=[1e-3, 1e-2], validation=VAL, metrics={"accuracy": Metric(score, greater_is_better=True)},
        engine=Engine("compiled", 2, steps=6),
    )  # fmt: skip
    assert events[-6:] == ["read", "scored", "scored"] * 2, "each epoch is scored before the next one is read"


def spread(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> l2path.CVResult:
    """Members of 3 folds, two of which have 33 rows to train on and one 34, and of some seeds."""
    options: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1, momentum=0.9), "epochs": 4, "batch_size": 8,
        "lambdas": l2path.lambda_grid(1e-4, 1.0, 3), "folds": 3, "seeds": seeds,
    }  # fmt: skip
    return l2path.cross_validate(changes.pop("make", network), TRAIN, **(options | changes))


JOINED = Engine("compiled", 3, workers=2, steps=4, partial=False)


@pytest.mark.parametrize("make", [network, lambda: network(dropout=True)], ids=["plain", "dropout"])
def test_groups_that_end_together_equal_the_loop(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch of an epoch is smaller: members of several folds and seeds, each with its own, share a step."""
    sizes: list[int] = []
    each, scored = Compiled.run_each, Scorer.scores

    def counted(self: Compiled, state: Any, blocks: Any, *rest: Any) -> Any:
        sizes.append(len({id(block) for block in blocks}))
        return each(self, state, blocks, *rest)

    together: list[int] = []

    def counted_scores(self: Scorer, chunks: Any, validation: Validation) -> Any:
        together.append(len({id(chunk.group) for chunk in chunks}))
        return scored(self, chunks, validation)

    monkeypatch.setattr(Compiled, "run_each", counted)
    monkeypatch.setattr(Scorer, "scores", counted_scores)
    found = spread(make=make, engine=JOINED)
    assert found.members.engine.kind == "compiled"
    assert max(sizes) >= 4, "groups whose last batches are alike"
    assert max(together) == 2, "the seeds of a fold"
    looped = spread(make=make, engine="loop")
    assert_trees_close(found.members.params, looped.members.params, RTOL)
    assert_trees_close(found.members.history, looped.members.history, RTOL)
    again = spread(make=make, engine=found.members.engine)
    for name, want in found.members.params.items():
        assert torch.equal(again.members.params[name], want)


def test_groups_whose_steps_cannot_be_joined_rightly_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joined step that gives every member the first one's batch is found out before it is used."""
    each, used = Compiled.run_each, 0

    def wrong(self: Compiled, state: Any, blocks: Any, *rest: Any) -> Any:
        nonlocal used
        used += 1
        return each(self, state, [blocks[0]] * len(blocks), *rest)

    monkeypatch.setattr(Compiled, "run_each", wrong)
    found = spread(engine=JOINED)
    assert used == 1, "in the check alone"
    assert_trees_close(found.members.params, spread(engine="loop").members.params, RTOL)


class Masked(nn.Module):
    """Has a buffer of booleans."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3).double()
        self.register_buffer("mask", torch.tensor([True, False, True, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * self.mask)
        return out


def test_buffers_of_booleans_are_no_obstacle() -> None:
    found = spread(make=Masked, engine=JOINED)
    assert found.members.engine.kind == "compiled"
    assert_trees_close(found.members.params, spread(make=Masked, engine="loop").members.params, RTOL)


def test_modules_that_are_alike_in_training_alone_are_scored_apart() -> None:
    made = itertools.count()

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.shift = nn.Linear(5, 3).double(), torch.tensor([0.0, 1.0 * next(made), 0.0])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out if self.training else out + self.shift

    found = spread(make=Shifted, engine=JOINED)
    made = itertools.count()
    assert_trees_close(found.members.history, spread(make=Shifted, engine="loop").members.history, RTOL)


class Noisy(nn.Module):
    """Draws in eval mode, and in no other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x if self.training else x + torch.randn_like(x))
        return out


def test_seeds_that_draw_other_numbers_are_scored_apart() -> None:
    found, looped = spread(make=Noisy, engine=JOINED), spread(make=Noisy, engine="loop")
    assert_trees_close(found.members.history, looped.members.history, RTOL)


# Losses of all members at once


def validation(loss: Callable[..., Any], **more: Any) -> Validation:
    x, y = VAL
    return Validation(RowSource(lambda rows: (x[rows], y[rows]), len(x), 16, None), loss, {}, **more)


def in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mul_(2.0), targets)


def with_noise(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs + 0.1 * torch.randn_like(outputs[:1]), targets)


def by_number(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) * (2.0 if outputs.max().item() > 0 else 1.0)


def unlike(outputs: Tensor, targets: Tensor) -> Tensor:
    """Another number inside of vmap than outside."""
    return F.cross_entropy(outputs, targets) * (2.0 if torch._C._functorch.is_batchedtensor(outputs) else 1.0)


@pytest.mark.parametrize(
    ("loss", "batched", "quiet"),
    [
        (F.cross_entropy, True, True),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), label_smoothing=0.1), True, True),
        (in_place, True, True),
        (with_noise, False, False),
        (by_number, False, True),
        (unlike, False, True),
    ],
    ids=["plain", "weighted", "in place", "noise", "by number", "unlike"],
)
def test_losses_are_vmapped_where_that_gives_the_same(loss: Callable[..., Any], batched: bool, quiet: bool) -> None:
    fn = functionalize(network())
    seed_generators(fn.device, 0)
    assert selfcheck.scoring(fn, [fn.evaluation()] * 2, validation(loss), "vmap", alike=True) == (batched, quiet)


@pytest.mark.parametrize("limit", [2**25, 3 * 40 * 3 * 8, 1])
def test_vmapped_losses_equal_single_ones(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only three members fit, or none."""
    monkeypatch.setattr(evaluation, "LOSS_BYTES", limit)
    outputs, targets = torch.randn(7, 40, 3, dtype=torch.float64), VAL[1]

    def prepare() -> None:
        torch.manual_seed(3)

    for loss in (F.cross_entropy, in_place, with_noise):
        once, singly = (
            scores_of_outputs(outputs.clone(), targets, validation(loss, batched=b), prepare) for b in (True, False)
        )
        torch.testing.assert_close(once["val_loss"], singly["val_loss"], rtol=1e-12, atol=0.0)
        want = torch.stack([loss_with(prepare, loss, one.clone(), targets) for one in outputs])
        torch.testing.assert_close(once["val_loss"], want, rtol=1e-12, atol=0.0)


def loss_with(prepare: Callable[[], None], loss: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    prepare()
    return loss(outputs, targets)


def test_workers_keep_to_one_thread_of_torch() -> None:
    """At its first operation torch gives a thread as many as are set for the process then; other sums, other digits."""
    workers, before = Workers(1, joins=False), torch.get_num_threads()
    try:
        workers.pool.submit(int).result()  # its thread begins
        torch.set_num_threads(2)  # as the driver does when it records
        assert workers.pool.submit(torch.get_num_threads).result() == 1
    finally:
        workers.close()
        torch.set_num_threads(before)


def test_a_metric_may_wait_for_a_thread_that_compiles() -> None:
    """Torch's lock of the compiler is not held while members are scored: a metric may train something."""
    from torch._dynamo.convert_frame import compile_lock

    got: list[bool] = []

    def other() -> None:
        got.append(compile_lock.acquire(timeout=5.0))
        if got[-1]:
            compile_lock.release()

    def waits(outputs: Tensor, targets: Tensor) -> Tensor:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return (outputs.argmax(1) == targets).double().mean()

    found = train(network(), metrics={"accuracy": waits}, epochs=2)
    assert found.engine.kind == "compiled"
    assert len(got) >= 2 * 7
    assert all(got)


class Keeps:
    """A loss that keeps what it returned last."""

    last: Tensor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.last = F.cross_entropy(outputs, targets)
        return self.last


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_metrics_may_look_at_what_the_loss_keeps(engine: Any) -> None:
    loss = Keeps()
    found = train(network(), loss_fn=loss, metrics={"kept": lambda outputs, targets: loss.last}, engine=engine)
    assert torch.equal(found.history["val_kept"], found.history["val_loss"])


class Fills(nn.Module):
    """Has a number of its own for what is missing, which is no parameter and no buffer."""

    def __init__(self, number: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3).double()
        self.number = torch.tensor(number, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 3]``."""
        out: Tensor = self.layer(torch.where(x == -1.0, self.number, x))
        return out


@pytest.mark.parametrize("engine", ["vmap", Engine("compiled", 2, workers=2, steps=2, partial=False)])
def test_modules_that_differ_where_the_first_batch_does_not_look_are_kept_apart(engine: Any) -> None:
    """Seeds share neither a program nor scores then."""
    inputs, targets = (x.clone() for x in TRAIN)
    inputs[20:, 2] = -1.0

    def spread(engine: Any) -> l2path.PathResult:
        numbers = itertools.count(1)
        return l2path.batch_train(
            lambda: Fills(float(next(numbers))), (inputs, targets), loss_fn=F.cross_entropy, seeds=(0, 1),
            optimizer=l2path.sgd(lr=0.1), epochs=2, batch_size=8, lambdas=[1e-3, 1e-2], shuffle=False, engine=engine,
            validation=DataLoader(TensorDataset(inputs, targets), batch_size=5),
        )  # fmt: skip

    found, looped = spread(engine), spread("loop")
    assert_trees_close(found.params, looped.params, RTOL)
    assert_trees_close(found.history, looped.history, RTOL)
    assert not torch.equal(looped.params["layer.weight"][0], looped.params["layer.weight"][2])
