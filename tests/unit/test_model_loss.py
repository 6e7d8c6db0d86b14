"""``model_loss``, and outputs of every kind in training, evaluation and standard errors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import l2path
from l2path.losses import own_loss
from tests.helpers import assert_trees_close

pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")

ENGINES = ("vmap", "loop")
X = torch.randn(15, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, :1] - 0.5 * X[:, 1:2]
ROWS, HELD_OUT = {"x": X[:10], "labels": Y[:10]}, {"x": X[10:], "labels": Y[10:]}
LAMBDAS = [0.3, 0.1, 0.0]


class Model(nn.Module):
    """BatchNorm and dropout, and a loss of its own where there are labels."""

    def __init__(self, wrap: Callable[[Tensor, Tensor | None], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Tanh(), nn.Linear(4, 1))
        self.layers, self.wrap = nn.Sequential(*layers).double(), wrap

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        outputs = self.layers(x)
        return self.wrap(outputs, None if labels is None else F.mse_loss(outputs, labels))


def as_dict(outputs: Tensor, loss: Tensor | None) -> dict[str, Tensor | None]:
    return {"logits": outputs, "loss": loss}


def train(module: nn.Module, data: Any = ROWS, loss_fn: Any = None, **changes: Any) -> l2path.PathResult:
    settings: dict[str, Any] = {
        "optimizer": l2path.sgd(lr=0.1, momentum=0.9), "lambdas": LAMBDAS, "epochs": 3, "seed": 1,
        "batch_size": None if isinstance(data, DataLoader) else 4,
    }  # fmt: skip
    return l2path.batch_train(module, data, loss_fn=loss_fn or l2path.model_loss(), **(settings | changes))


def plain(**changes: Any) -> l2path.PathResult:
    """The same model with an ordinary loss on the outside."""
    module = Model(lambda outputs, loss: outputs)
    options = {"validation": (HELD_OUT["x"], HELD_OUT["labels"])} | changes
    return train(module, (ROWS["x"], ROWS["labels"]), F.mse_loss, **options)


# --- the loss in the outputs ------------------------------------------------------------------------------------------


def test_the_loss_is_found_in_the_outputs() -> None:
    loss, other = torch.tensor(2.0), torch.ones(3)
    for outputs in (loss, SimpleNamespace(loss=loss), {"loss": loss, "x": other}, OrderedDict(loss=loss)):
        assert own_loss(outputs) is loss
    # An attribute comes first, and a tensor of one number has no loss beside itself.
    assert own_loss(SimpleNamespace(loss=loss, get=None)) is loss
    for nothing in (other, (loss, other), {"x": loss}, SimpleNamespace(loss=None), None, {"loss": 2.0}):
        with pytest.raises(l2path.ArgumentError, match=r"without a loss; expected a 0-d tensor.*outputs\[0\]"):
            own_loss(nothing)
    with pytest.raises(l2path.ArgumentError, match=r"a Tensor of shape \[3\] without a loss"):
        own_loss(other)


@pytest.mark.parametrize(
    ("loss_fn", "text"),
    [
        (l2path.model_loss, r"call it: l2path\.model_loss\(\)"),
        (l2path.full_loss, r"call it: l2path\.full_loss\(f\)"),
        (l2path.model_loss(lambda outputs: outputs["logits"]), r"shape \[4, 1\].* a scalar"),
        (l2path.model_loss(lambda outputs: 1.0), "a result of float"),
        (l2path.model_loss(lambda outputs: outputs["los"]), "KeyError: 'los'"),
    ],
)
def test_what_is_no_loss(loss_fn: Any, text: str) -> None:
    with pytest.raises(l2path.ArgumentError, match=text):
        train(Model(as_dict), loss_fn=loss_fn)


@pytest.mark.parametrize("pick", [3, "loss", nn.MSELoss()])
def test_what_takes_no_loss_out(pick: Any) -> None:
    with pytest.raises(l2path.ArgumentError, match=r"^pick: got a "):
        l2path.model_loss(pick)


def test_an_ordinary_loss_with_a_dict_of_rows_is_told_of_model_loss() -> None:
    with pytest.raises(l2path.ArgumentError, match=r"^batch: got a dict of \['x', 'labels'\].*l2path\.model_loss\(\)"):
        train(Model(as_dict), loss_fn=F.mse_loss)


# --- the same as an ordinary loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"engine": "loop"}, {"member_chunk": 2}, {"engine": "vmap"}])
def test_it_trains_and_scores_as_a_loss_outside_does(changes: dict[str, Any]) -> None:
    def error(outputs: Any, batch: Any) -> Any:
        return (outputs["logits"] - batch["labels"]).abs().mean()

    expected = plain(metrics={"error": F.l1_loss}, **changes)
    result = train(Model(as_dict), validation=HELD_OUT, metrics={"error": error}, **changes)
    assert result.engine.kind == expected.engine.kind
    for name in ("params", "buffers"):  # of the same layers
        assert_trees_close(getattr(result, name), getattr(expected, name), 1e-12)
    assert_trees_close(result.history, expected.history, 1e-12)
    assert_trees_close(result.uncertainty.standard_errors, expected.uncertainty.standard_errors, 1e-12)
    assert_trees_close(result.uncertainty.difference_errors, expected.uncertainty.difference_errors, 1e-12)
    predicted = result.predict({"x": HELD_OUT["x"]})
    assert_trees_close(predicted, {"logits": expected.predict(HELD_OUT["x"]), "loss": None}, 1e-12)


def test_a_metric_decides_and_has_its_standard_errors() -> None:
    def size(outputs: Any, batch: Any) -> Any:
        return (outputs["logits"] - batch["labels"]).abs().mean() + 0 * outputs["loss"]

    def error(outputs: Any, batch: Any) -> Any:
        return (outputs["logits"] - batch["labels"]).abs().mean()

    metrics = {"error": l2path.Metric(error), "size": l2path.Metric(size)}
    result = train(Model(as_dict), validation=HELD_OUT, metrics=metrics, select="error")
    expected = plain(metrics={"error": l2path.Metric(F.l1_loss)}, select="error")
    assert result.best.index == expected.best.index
    assert_trees_close(result.uncertainty.difference_errors, expected.uncertainty.difference_errors, 1e-12)
    # What looks at one number of a whole batch cannot be scored on one row.
    result = train(Model(as_dict), validation=HELD_OUT, metrics=metrics, select="size")
    assert result.uncertainty.standard_errors is None
    assert "not the mean over its rows" in (result.uncertainty.reason or "")


def test_positional_batches_and_a_loss_that_is_picked() -> None:
    module = Model(lambda outputs, loss: (outputs, loss))
    result = train(module, (ROWS["x"], ROWS["labels"]), l2path.model_loss(lambda outputs: outputs[1]))
    assert_trees_close(result.params, plain().params, 1e-12)


def batches(rows: dict[str, Tensor]) -> DataLoader[Any]:
    items: Any = [{name: value[i] for name, value in rows.items()} for i in range(len(rows["x"]))]
    return DataLoader(items, batch_size=4)


def test_loaders_of_dicts_and_the_mean_over_validation_batches() -> None:
    module = Model(lambda outputs, loss: None if loss is None else loss.sqrt())  # no mean of rows, nor of batches
    result = train(module, batches(ROWS), validation=batches(HELD_OUT))
    with torch.no_grad():
        for k, score in enumerate(result.scores):
            own = result.member(k).module().eval()
            first, last = (own(**{name: v[rows] for name, v in HELD_OUT.items()}) for rows in (slice(4), slice(4, 5)))
            assert_trees_close(score, (4 * first + last) / 5, 1e-12)
    assert "not the mean over its rows" in (result.uncertainty.reason or "")
    with_metric = train(
        Model(lambda outputs, loss: (outputs, None if loss is None else loss.sqrt())), batches(ROWS),
        l2path.model_loss(lambda outputs: outputs[1]), validation=batches(HELD_OUT),
        metrics={"rows": lambda outputs, batch: len(outputs[0]) + len(batch["x"])},
    )  # fmt: skip
    assert_trees_close(with_metric.history["val_loss"], result.history["val_loss"], 1e-12)
    assert with_metric.history["val_rows"][-1].tolist() == [10.0] * 3


def test_too_many_rows_to_call_the_model_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2path.path.rows.MODEL_CALLS", 5)
    assert train(Model(as_dict), validation=HELD_OUT).uncertainty.standard_errors is not None
    looped = train(Model(as_dict), validation=HELD_OUT, engine="loop")
    assert "15 calls on single rows are too many" in (looped.uncertainty.reason or "")


def test_a_model_that_takes_no_single_row() -> None:
    class Pairs(Model):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            if len(x) < 2:
                raise ValueError("one row is no pair")
            return super().forward(x, labels)

    result = train(Pairs(as_dict), validation=HELD_OUT)
    assert result.uncertainty.reason == "the model fails on one row: one row is no pair"


def test_a_loss_that_is_a_sum_is_told() -> None:
    module = Model(lambda outputs, loss: None if loss is None else loss * len(outputs))
    with pytest.warns(l2path.ReductionWarning, match="twice the rows"):
        train(module, optimizer=l2path.sgd(lr=0.01))


# --- outputs of every kind --------------------------------------------------------------------------------------------


class Named(NamedTuple):
    logits: Tensor
    absent: None
    scale: float


@dataclass(frozen=True)
class Record:
    logits: Tensor
    absent: Tensor | None
    inner: dict[str, Tensor]
    name: str = "record"

    def __post_init__(self) -> None:
        assert self.logits.ndim == 2, "made anew with other tensors it would fail"


class Output(OrderedDict[str, Any]):
    """As those of Hugging Face: entries are attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Cache:
    """An object that belongs to one call."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "NamedTuple": lambda h: Named(h, None, 2.5),
    "dataclass": lambda h: Record(h, None, {"twice": 2 * h}),
    "mapping": lambda h: Output(logits=h, cache=Cache(h), steps=3),
    "namespace of one call": lambda h: Output(logits=h, nested=[(h,), None]),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind(kind: str, engine: Literal["vmap", "loop"]) -> None:
    wrap = KINDS[kind]
    module = Model(lambda outputs, loss: wrap(outputs))
    result = train(
        module, (ROWS["x"], ROWS["labels"]), lambda out, y: F.mse_loss(out.logits, y), engine=engine,
        validation=batches_of_pairs(), metrics={"error": lambda out, y: F.l1_loss(out.logits, y)},
    )  # fmt: skip
    expected = plain(engine=engine, metrics={"error": F.l1_loss})
    assert result.eval_kind == expected.eval_kind == engine
    assert_trees_close(result.history, expected.history, 1e-12)
    assert_trees_close(result.uncertainty.standard_errors, expected.uncertainty.standard_errors, 1e-12)
    predicted = result.predict(HELD_OUT["x"])
    assert type(predicted) is type(wrap(HELD_OUT["x"]))
    assert_trees_close(predicted.logits, expected.predict(HELD_OUT["x"]), 1e-12)
    if isinstance(predicted, Named):
        assert predicted.absent is None
        assert predicted.scale.tolist() == [2.5] * 3  # type: ignore[attr-defined]  # a number for each member
    elif isinstance(predicted, Record):
        assert (predicted.absent, predicted.name) == (None, "record")
        assert_trees_close(predicted.inner["twice"], 2 * predicted.logits, 1e-12)
    elif kind == "mapping":
        assert (predicted["cache"], predicted["steps"]) == (None, 3)
    else:
        assert_trees_close(predicted["nested"], [(predicted.logits,), None], 1e-12)


def batches_of_pairs() -> DataLoader[Any]:
    items: Any = list(zip(HELD_OUT["x"], HELD_OUT["labels"], strict=True))
    return DataLoader(items, batch_size=3)


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_that_cannot_be_joined(engine: Literal["vmap", "loop"]) -> None:
    class Grows(nn.Linear):
        """As many columns as the longest row of a batch has entries."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).expand(-1, len(x))

    module = Grows(3, 1).double()
    text = r"^outputs: got batches of the shapes \[\[3, 3\], \[2, 2\]\]; .*pad every batch .*model_loss"
    with pytest.raises(l2path.ArgumentError, match=text) as caught:
        train(module, (X, Y), lambda out, y: F.mse_loss(out[:, :1], y), engine=engine, validation=batches_of_pairs())
    assert hasattr(caught.value, "partial_result")


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_without_a_tensor_are_refused_before_training(engine: Literal["vmap", "loop"]) -> None:
    module = Model(lambda outputs, loss: torch.distributions.Normal(outputs, torch.ones_like(outputs)))
    text = r"outputs without a tensor: Normal; expected .* Remedy: return the tensors that it is made of"

    def loss(outputs: Any, targets: Tensor) -> Any:
        return -outputs.log_prob(targets).mean()

    with pytest.raises(l2path.ArgumentError, match=text):
        train(module, (ROWS["x"], ROWS["labels"]), loss, engine=engine, validation=(HELD_OUT["x"], HELD_OUT["labels"]))


def test_constants_that_differ_between_members_are_left_out() -> None:
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            outputs = super().forward(x)
            return {"logits": outputs, "large": int((outputs > 0.5).sum()), "all": len(x)}

    torch.manual_seed(0)
    options: dict[str, Any] = {"lambdas": [9.0, 0.0], "engine": "loop"}
    predicted = train(Counts(3, 1).double(), (X, Y), lambda out, y: F.mse_loss(out["logits"], y), **options).predict(X)
    assert (predicted["large"], predicted["all"]) == (None, 15)
