"""Models and data that fail on the first batch, or on a later one: what the error says, and what is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import l2path
from tests.contract import snapshot
from tests.helpers import assert_trees_close

X = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(11) % 3


class TooFew(RuntimeError):
    """An error of the user's own."""


class Fussy(nn.Module):
    """Takes no batch of three rows."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            raise TooFew("three rows are too few")
        return x


class Network(nn.Module):
    """Something in the middle, and a mask beside the inputs."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 5), middle or nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> Tensor:
        out = self.last(self.middle(self.first(x * mask))) * scale
        assert isinstance(out, Tensor)
        return out


def network(middle: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Network(middle)


def batches(*items: Any) -> DataLoader[Any]:
    """A loader of these batches, as they are."""
    loaded: Any = items
    return DataLoader(loaded, batch_size=None, collate_fn=lambda batch: batch)


INPUTS = {"x": X, "mask": torch.ones(11, 4)}


def train(module: nn.Module, data: Any, **changes: Any) -> l2path.PathResult:
    """Train, and check that the module stays as it was whatever happens."""
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1), "lambdas": [0.1, 0.01], "epochs": 2,
        "batch_size": None if isinstance(data, DataLoader) else 4,
    }  # fmt: skip
    weights, parts = snapshot(module)
    try:
        return l2path.batch_train(module, data, **(settings | changes))
    finally:
        after, parts_after = snapshot(module)
        assert parts_after == parts
        assert_trees_close(after, weights, 0.0)


# --- on the first batch -----------------------------------------------------------------------------------------------

SIGNATURE = r"Network\.forward\(x, mask, \*, scale=1\.0\)"
ARGUMENTS = {
    "missing": ({"x": X}, "missing a required argument: 'mask'"),
    "unknown": ({**INPUTS, "masks": X}, "got an unexpected keyword argument 'masks'"),
    "too many": ((X, X, X), "too many positional arguments"),
    "too few": (X, "missing a required argument: 'mask'"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_inputs_that_forward_cannot_be_called_with(name: str) -> None:
    inputs, problem = ARGUMENTS[name]
    with pytest.raises(l2path.ArgumentError, match=rf"^data: got .*{problem}; expected what {SIGNATURE} takes"):
        train(network(), (inputs, Y))


def test_a_model_with_its_own_loss_lacks_an_argument() -> None:
    text = r"inputs of the structure \{x: \*\}: missing a required argument: 'mask'"
    with pytest.raises(l2path.ArgumentError, match=text):
        train(network(), {"x": X}, loss_fn=l2path.model_loss())


def test_a_type_error_inside_of_forward_is_no_matter_of_its_arguments() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return len(3)  # type: ignore[arg-type]  # on purpose

    text = r"the layer 'middle' \(Broken\) fails: TypeError: object of type 'int' has no len\(\)"
    with pytest.raises(l2path.ArgumentError, match=text):
        train(network(Broken()), (INPUTS, Y))


class Distances(nn.Module):
    """An operation that torch lacks in half precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x[:5])


def test_an_operation_that_half_precision_lacks() -> None:
    module = network(Distances()).half()
    inputs = {name: value.half() for name, value in INPUTS.items()}
    with pytest.raises(l2path.ArgumentError, match=r"'middle' \(Distances\) fails: .*'Half'.*Remedy: train in float32"):
        train(module, (inputs, Y), batch_size=6)


class Irreversible(torch.autograd.Function):
    """Has no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise TooFew("there is no way back")


class OneWay(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Irreversible.apply(x)  # type: ignore[no-untyped-call]  # torch's own


def test_a_backward_pass_that_fails() -> None:
    text = r"on which the backward pass fails: TooFew: there is no way back"
    with pytest.raises(l2path.ArgumentError, match=text):
        train(network(OneWay()), (INPUTS, Y))
    with pytest.raises(l2path.ArgumentError, match=text):
        l2path.check(network(OneWay()), (INPUTS, Y), F.cross_entropy)


# --- on a later batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_later_error_of_the_model_says_where_and_keeps_its_type(engine: str) -> None:
    # Batches of 4, 4 and 3 rows: the third is step 2.
    with pytest.raises(TooFew) as caught:
        train(network(Fussy()), (INPUTS, Y), engine=engine)
    assert str(caught.value) == "three rows are too few"
    notes = caught.value.__notes__
    shapes = "float32 [3, 4], float32 [3, 4], int64 [3]"
    assert notes[0] == f"l2path: step 2 (epoch 1), on a batch of {shapes}, in the layer 'middle' (Fussy)"
    assert "partial_result" in notes[1]
    # Nothing was updated yet: the three batches were one block.
    partial = caught.value.partial_result  # type: ignore[attr-defined]  # what the note speaks of
    assert (len(partial), partial.complete, partial.epochs_trained) == (2, False, (0, 0))


def test_what_was_trained_before_a_later_epoch_is_kept() -> None:
    class Tires(Dataset[Any]):
        epochs = 0

        def __len__(self) -> int:
            return 11

        def __getitem__(self, i: int) -> Any:
            self.epochs += i == 10
            rows = {name: value[i] for name, value in INPUTS.items()}
            return rows, (Y[i] if self.epochs < 3 else Y[i] + 3)

    with pytest.raises((IndexError, RuntimeError), match="out of bounds") as caught:
        train(network(), DataLoader(Tires(), batch_size=4), epochs=5)
    step, kept = caught.value.__notes__
    assert step == "l2path: step 8 (epoch 3), on a batch of float32 [3, 4], float32 [3, 4], int64 [3]"  # of no layer
    assert "partial_result" in kept
    partial = caught.value.partial_result  # type: ignore[attr-defined]  # what the note speaks of
    expected = train(network(), DataLoader(Tires(), batch_size=4), epochs=2)
    assert partial.epochs_trained == (2, 2)
    assert_trees_close(partial.params, expected.params, 0.0)


def test_a_later_validation_batch_that_fails_is_named() -> None:
    parts = (({name: value[rows] for name, value in INPUTS.items()}, Y[rows]) for rows in (slice(5), slice(3)))
    with pytest.raises(TooFew) as caught:
        train(network(Fussy()), (INPUTS, Y), batch_size=11, validation=batches(*parts))
    text = "l2path: batch 1 of the validation data, on a batch of float32 [3, 4], float32 [3, 4]"
    assert caught.value.__notes__[0].startswith(text)


def test_an_error_of_the_hook_or_the_data_is_no_error_of_a_step() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield {name: value[:4] for name, value in INPUTS.items()}, Y[:4]
            raise TooFew("one batch is too few")

    def hook(event: l2path.EpochEvent) -> None:
        raise TooFew("one epoch is too few")

    for data, options in ((DataLoader(Stream(), batch_size=None), {}), ((INPUTS, Y), {"on_epoch": hook})):
        with pytest.raises(TooFew) as caught:
            train(network(), data, **options)
        assert ["partial_result" in note for note in caught.value.__notes__] == [True]


BATCHES: dict[str, tuple[Any, Any, str, str]] = {
    "another key": (
        ({"x": X, "mask": X}, Y), ({"x": X, "masks": X}, Y), r"\(\{masks: \*, x: \*\}, \*\)",
        r"\(\{mask: \*, x: \*\}, \*\)",
    ),
    "a key less": (({"x": X, "mask": X}, Y), ({"x": X}, Y), r"\(\{x: \*\}, \*\)", r"\(\{mask: \*, x: \*\}, \*\)"),
    "a part more": ((X, Y), (X, X, Y), r"\(\*, \*, \*\)", r"\(\*, \*\)"),
    "a part less": (((X, X), Y), ((X,), Y), r"\(\(\*\), \*\)", r"\(\(\*, \*\), \*\)"),
    "no pair": (((X, X), Y), X, r"\*", r"\(\(\*, \*\), \*\)"),
}  # fmt: skip


class Accepting(nn.Linear):
    """Takes whatever comes."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return super().forward(X)


@pytest.mark.parametrize("argument", ["data", "validation"])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_another_structure(name: str, argument: str) -> None:
    good, bad, got, expected = BATCHES[name]
    arguments = {"data": batches(good)} | {argument: batches(good, good, bad)}
    text = rf"^{argument} \(batch 2 of the epoch\): got a batch {got}; expected .* first batch, {expected}\. Remedy: "
    with pytest.raises(l2path.ArgumentError, match=text):
        train(Accepting(4, 3), arguments.pop("data"), **arguments)


def test_what_may_differ_between_batches() -> None:
    # A mask that is there in some batches only, lists beside tuples, and the order of keys.
    train(Accepting(4, 3), batches((({"x": X, "mask": None},), Y), [[{"mask": X, "x": X}], Y]))


def test_rows_of_another_structure() -> None:
    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return {"x": X[i], "mask" if i < 4 else "masks": X[i]}, Y[i]

    with pytest.raises(l2path.ArgumentError, match=r"^data: got a batch \(\{masks: \*, x: \*\}, \*\); expected"):
        train(network(), Rows(), shuffle=False)


def test_a_later_batch_without_rows() -> None:
    rows, nothing, module = (X[:4], Y[:4]), (X[:0], Y[:0]), nn.Linear(4, 3)
    text = r"^%s \(batch 1 of the epoch\): got a batch without rows; expected at least one"
    with pytest.raises(l2path.ArgumentError, match=text % "data"):
        train(module, batches(rows, nothing))
    with pytest.raises(l2path.ArgumentError, match=text % "validation"):
        train(module, batches(rows), validation=batches(rows, nothing))


def test_the_call_without_trouble_works() -> None:
    assert train(network(), (INPUTS, Y)).complete
