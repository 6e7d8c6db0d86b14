"""Results on disk: what is loaded answers as the original did, without the module's code and with it."""

from __future__ import annotations

import io
import json
import signal
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path import ArgumentError, load_result
from l2path.crossval.outcome import CVOutcome
from l2path.files import read_file
from l2path.functional import Functional
from l2path.path.members import HyperAxis, Members
from l2path.path.outcome import Outcome, Selection
from l2path.path.saved import contents, outcome_fields
from l2path.penalty import LambdaAxis, Names
from l2path.trees import tensor_leaves
from tests.families import FAMILIES, Family
from tests.families import train as train_family
from tests.models import BATCH, GRID, classes, noisy, smooth, train

ACCURACY = l2path.Metric(lambda o, t: (o.argmax(1) == t).float().mean(), greater_is_better=True)
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
pytestmark = pytest.mark.filterwarnings("ignore::l2path.L2PathWarning")


def same(a: Any, b: Any, where: str = "result") -> None:
    """Assert that two values are equal in type, order and every bit."""
    assert type(a) is type(b), f"{where}: {type(a)} instead of {type(b)}"
    if isinstance(b, Tensor):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), where
        assert (
            torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
            if b.ndim
            else (a.numpy().tobytes() == b.numpy().tobytes())
        ), where
    elif isinstance(b, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), where
    elif isinstance(b, dict):
        assert list(a) == list(b), f"{where}: {list(a)} instead of {list(b)}"
        for key in b:
            same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(b, (tuple, list)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif is_dataclass(b):
        for f in fields(b):
            same(getattr(a, f.name), getattr(b, f.name), f"{where}.{f.name}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a!r} instead of {b!r}"


ELSEWHERE = {"functionals", "select", "names"}  # compared by what they do, below
DERIVED = ("lambdas", "lambdas_by_parameter", "hyper", "chosen", "path_values", "boundary")


def same_result(a: l2path.PathResult, b: l2path.PathResult) -> None:
    """Assert that a loaded result answers as the original."""
    for f in fields(b):
        if f.name not in ELSEWHERE:
            same(getattr(a, f.name), getattr(b, f.name), f.name)
    assert (a.live_params is a.params) is (b.live_params is b.params)
    same(a.names.aliases, b.names.aliases)
    same(a.names.exempt, b.names.exempt)
    same(a.names.frozen, b.names.frozen)
    assert {n: (p.shape, p.dtype) for n, p in a.names.params.items()} == {
        n: (p.shape, p.dtype) for n, p in b.names.params.items()
    }
    assert (a.select.name, a.select.greater_is_better) == (b.select.name, b.select.greater_is_better)
    assert (a.select.validation is None) is (b.select.validation is None)
    for name in DERIVED:
        same(getattr(a, name), getattr(b, name), name)
    same(a.strength_rank(), b.strength_rank())
    same(a.weight_norms(), b.weight_norms())
    if b.select.validation is not None:
        same(a.scores, b.scores)
        same(a.cvm, b.cvm)
    for k in range(len(b)):
        same(a.member(k).state_dict(), b.member(k).state_dict(), f"member {k}")
        assert repr(a.member(k)) == repr(b.member(k))
    assert (str(a), repr(a), a._repr_html_()) == (str(b), repr(b), b._repr_html_())
    for history in (False, True):
        assert a.to_dataframe(history=history).equals(b.to_dataframe(history=history))


def test_the_comparison_can_fail() -> None:
    result = made("grid")
    for wrong in (
        ({"x": torch.ones(2)}, {"x": torch.ones(2, dtype=torch.float64)}),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (1, 1.0),
        (np.float32(0.5), 0.5),
    ):
        with pytest.raises(AssertionError):
            same(*wrong)
    with pytest.raises(AssertionError):
        same_result(made("no validation"), result)


# --- results of every kind --------------------------------------------------------------------------------------------


def half_frozen() -> nn.Module:
    """Drawn anew for each seed, the part that does not learn as well."""
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    module[0].weight.requires_grad_(False)
    return module


class Spare(nn.Module):
    """A parameter that no output depends on, and a buffer that no state_dict has."""

    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.linear = nn.Parameter(torch.randn(2)), nn.Linear(5, 3)
        self.register_buffer("hidden", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Any:
        self.hidden = self.hidden + 1
        return self.linear(x) + self.hidden


def interrupted(event: l2path.EpochEvent) -> None:
    if event.epoch == 2:
        signal.raise_signal(signal.SIGINT)


def halves(seed: int = 1, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    x, y = classes(40, seed)
    return x.to(dtype), y


SPECS = [
    {"*": 0.1, "0.weight": torch.full((8, 5), 0.2)},
    l2path.weights_only({"0.weight": np.float32(0.3), "*": 0}),
    {"0.bias": [0.1] * 8, "3.weight": np.linspace(0.0, 1.0, 5 * 3 + 9).reshape(3, 8), "2.*": range(8)},
    l2path.weights_only(np.float64(0.5)),
    0.25,
    torch.tensor(0.125),
]
CASES: dict[str, Callable[[], l2path.PathResult]] = {
    "grid": train,
    "no validation": lambda: train(validation=None),
    "metric": lambda: train(metrics={"accuracy": ACCURACY, "bare": lambda o, t: 1.0}, select="accuracy"),
    "patterns": lambda: train(lambdas={"0.*": GRID, "3.weight": 0.1}),
    "element-wise": lambda: train(
        lambdas={"0.weight": torch.rand(3, 8, 5, dtype=torch.float64), "3.weight": torch.rand(1, 3, 8), "*": 0.1}
    ),
    "weights only": lambda: train(lambdas=l2path.weights_only(GRID)),
    "specs": lambda: train(lambdas=SPECS),
    "weights only specs": lambda: train(lambdas=l2path.weights_only([{"*": 0.1}, {"*": 0.2, "0.weight": 0.3}])),
    "one parameter": lambda: train(module=nn.Linear(5, 3, bias=False).double(), lambdas=torch.rand(2, 3, 5)),
    "sweep": lambda: train(sweep={"lr": [0.1, 0.05], "momentum": [0.9, 0.0]}),
    "decay": lambda: train(lambdas=None, optimizer=l2path.adamw(lr=0.01), sweep={"decay": [0.5, 0.1]}),
    "decay by pattern": lambda: train(
        lambdas=None, optimizer=l2path.adamw(lr=0.01), sweep={"decay": {"0.*": [0.5, 0.1], "*": 0.0}}
    ),
    "decay of specs": lambda: train(
        lambdas=None, optimizer=l2path.adamw(lr=0.01), sweep={"decay": [{"*": 0.5}, {"0.*": torch.tensor(0.1)}]}
    ),
    "members": lambda: train(
        lambdas=None, members=[{"lambdas": 0.1, "lr": 0.1, "seed": 3}, {"lambdas": 0.2, "lr": 0.2, "seed": 5}]
    ),
    "seeds": lambda: train(module=noisy(), seeds=(2, 7), member_chunk=2),
    "frozen by seed": lambda: train(module=half_frozen, seeds=(2, 7)),
    "unused": lambda: train(module=lambda: Spare().double(), seeds=(0, 1)),
    "early stopping": lambda: train(epochs=12, early_stopping=l2path.EarlyStopping(patience=1)),
    "halving": lambda: train(epochs=6, halving=l2path.SuccessiveHalving(min_epochs=2)),
    "averages": lambda: train(optimizer=l2path.ema(l2path.sgd(lr=0.05), 0.9)),
    "diverged": lambda: train(lambdas=[1e4, 0.1, 0.0], epochs=25),
    "all diverged": lambda: train(lambdas=[1e6, 1e5], epochs=25),
    "interrupted": lambda: train(on_epoch=interrupted),
    "bfloat16": lambda: train(module=smooth().bfloat16(), data=halves(), validation=halves(2)),
    "loop": lambda: train(module=noisy(), engine="loop"),
    "extended": lambda: train(lambdas=l2path.lambda_grid(1e-4, 1e-3, 3), extend=True, epochs=2),
}


@cache
def made(name: str) -> l2path.PathResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CASES[name]()


def around(result: Any, folder: Path, module: Any = None) -> Any:
    result.save(folder / "result")
    return load_result(folder / "result", module)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_result_comes_back_without_its_module(name: str, tmp_path: Path) -> None:
    result = made(name)
    loaded = around(result, tmp_path)
    same_result(loaded, result)
    first = (tmp_path / "result").read_bytes()
    same_result(around(loaded, tmp_path), result)  # and what was loaded can be saved
    assert (tmp_path / "result").read_bytes() == first


def test_the_cases_are_what_they_are_called() -> None:
    assert "diverged" in made("diverged").status
    assert set(made("all diverged").status) == {"diverged"}
    assert "eliminated" in made("halving").status
    assert not made("interrupted").complete
    assert made("early stopping").epochs_kept != made("early stopping").epochs_trained
    assert made("averages").live_params is not made("averages").params
    fns = made("frozen by seed").functionals
    assert not torch.equal(fns[2][0].frozen["0.weight"], fns[7][0].frozen["0.weight"])
    assert made("unused").names.frozen.keys() == {"spare"}
    assert len(made("extended")) > 3
    assert made("loop").engine.kind == "loop"


def test_plots_work_without_the_module(tmp_path: Path) -> None:
    for name in ("grid", "seeds", "no validation"):
        around(made(name), tmp_path).plot().savefig(io.BytesIO())


def test_nothing_is_stored_twice(tmp_path: Path) -> None:
    result = made("grid")
    around(result, tmp_path)
    with zipfile.ZipFile(tmp_path / "result") as archive:
        arrays = len(archive.namelist()) - 1
    strengths, values, sure = len(result.params), 1, 3
    assert arrays == len(result.history) + len(result.params) + strengths + values + sure


# --- state_dict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.name) for f in FAMILIES if f.engine != "refused" and f.group != "losses"]
)
def test_state_dict_and_predictions_of_every_family(family: Family, tmp_path: Path) -> None:
    result = train_family(family, epochs=1)
    loaded = around(result, tmp_path)
    for k in range(len(result)):
        same(loaded.member(k).state_dict(), result.member(k).state_dict(), family.name)
        assert str(family.make().load_state_dict(loaded.member(k).state_dict())) == "<All keys matched successfully>"
    again = around(loaded, tmp_path, family.make())
    same(list(tensor_leaves(again.predict(family.inputs))), list(tensor_leaves(result.predict(family.inputs))))
    same(dict(again.member(1).module().state_dict()), result.member(1).state_dict())


def test_tied_names_share_their_memory_and_nothing_is_shared_with_the_result(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.name == "tied weights")
    loaded = around(train_family(family, epochs=1), tmp_path)
    found = loaded.member(0).state_dict()
    assert found["embedding.weight"].data_ptr() == found["decoder.weight"].data_ptr()
    kept = loaded.params["embedding.weight"].clone()
    found["embedding.weight"].zero_()
    assert torch.equal(loaded.params["embedding.weight"], kept)


class Counting(nn.Module):
    """An extra state, and a hook that adds an entry and changes another."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.linear, self.scaled, self.extra = nn.Linear(5, 3), nn.Linear(3, 3), extra
        register: Any = self.register_state_dict_post_hook  # which torch leaves without types
        register(self._hook)

    @staticmethod
    def _hook(module: Any, state: Any, prefix: str, _: Any) -> None:
        state[f"{prefix}norm"] = state[f"{prefix}linear.weight"].norm()
        state[f"{prefix}scaled.weight"] = 2 * state[f"{prefix}scaled.weight"]

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state

    def forward(self, x: Tensor) -> Any:
        return self.scaled(self.linear(x))


def test_what_a_state_dict_computes_is_kept_for_each_member(tmp_path: Path) -> None:
    extra = {"version": 3, "seen": [torch.arange(2), "text"]}
    result = train(module=Counting(extra).double(), seeds=(0, 1))
    loaded = around(result, tmp_path)
    for k in range(len(result)):
        same(loaded.member(k).state_dict(), result.member(k).state_dict())
    norms = {float(loaded.member(k).state_dict()["norm"]) for k in range(len(result))}
    assert len(norms) == len(result)
    same_result(around(loaded, tmp_path), result)
    loaded.member(0).state_dict()["_extra_state"]["seen"][0].zero_()
    same(loaded.member(0).state_dict(), result.member(0).state_dict())


def test_an_extra_state_that_no_file_holds_is_named(tmp_path: Path) -> None:
    result = train(module=Counting({1, 2}).double())
    loaded = around(result, tmp_path)
    assert str(loaded) == str(result)
    with pytest.raises(ArgumentError, match=r"_extra_state.*a set.*load_result\(path, module=\.\.\.\)"):
        loaded.member(0).state_dict()
    again = around(loaded, tmp_path, Counting({1, 2}).double())
    same(again.member(0).state_dict()["norm"], result.member(0).state_dict()["norm"])


def test_buffers_that_are_not_persistent_come_back_but_not_in_the_state_dict(tmp_path: Path) -> None:
    loaded = around(made("unused"), tmp_path)
    assert "hidden" not in loaded.member(0).state_dict()
    assert float(loaded.buffers["hidden"].min()) > 0


# --- with the module --------------------------------------------------------------------------------------------------

FACTORIES: dict[str, Any] = {
    "grid": smooth,
    "seeds": noisy,
    "frozen by seed": half_frozen,
    "unused": lambda: Spare().double(),
    "averages": smooth,
    "loop": noisy,
    "bfloat16": lambda: smooth().bfloat16(),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_with_the_module_predictions_are_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    result, make = made(name), FACTORIES[name]
    x = classes(33, 5)[0].to(next(iter(result.params.values())).dtype)
    before = torch.get_rng_state()
    loaded = around(result, tmp_path, make)
    assert torch.equal(torch.get_rng_state(), before)
    same_result(loaded, result)
    same(loaded.predict(x), result.predict(x))
    same(loaded.predict(x, [-1, 0], batch_size=7), result.predict(x, [-1, 0], batch_size=7))
    for k in (0, len(result) - 1):
        module = loaded.member(k).module()
        assert type(module) is type(result.member(k).module())
        same(module.eval()(x).detach(), result.member(k).module().eval()(x).detach())
        trained = {n: p.requires_grad for n, p in module.named_parameters()}
        assert trained == {n: p.requires_grad for n, p in result.member(k).module().named_parameters()}
    same_result(around(loaded, tmp_path), result)


def test_a_module_with_other_weights_serves_and_is_left_alone(tmp_path: Path) -> None:
    result, module = made("grid"), smooth(99)
    before = {n: p.clone() for n, p in module.state_dict().items()}
    loaded = around(result, tmp_path, module)
    x = classes(9, 5)[0]
    same(loaded.predict(x), result.predict(x))
    loaded.member(0).module()
    same(dict(module.state_dict()), before)


def test_what_needs_the_module_says_so(tmp_path: Path) -> None:
    loaded = around(made("grid"), tmp_path)
    with pytest.raises(ArgumentError, match=r"module: .*without its module.* predictions.*load_result\(path, module="):
        loaded.predict(classes(3)[0])
    with pytest.raises(ArgumentError, match=r"module: .*without its module.* module\(\)"):
        loaded.best.module()
    with pytest.raises(ArgumentError, match="validation: got a result that was loaded from a file"):
        next(iter(loaded.select.validation.source.epoch(0)))


def unfrozen() -> nn.Module:
    return half_frozen().requires_grad_(True)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("grid", lambda: nn.Linear(5, 3).double(), r"a Linear that does not fit .*'0\.weight': missing.*and \d more"),
        (
            "grid",
            lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3)).double(),
            r"'0\.weight': trainable \[9, 5\] torch\.float64, in the file trainable \[8, 5\] torch\.float64",
        ),
        ("grid", lambda: smooth().float(), r"torch\.float32, in the file trainable .*torch\.float64"),
        ("frozen by seed", unfrozen, r"'0\.weight': trainable \[4, 5\] .* in the file frozen \[4, 5\]"),
        ("seeds", lambda: nn.Sequential(nn.Linear(5, 8, bias=False)).double(), r"'1\.weight': missing"),
        ("grid", smooth().eval(), "module: .*eval"),
        ("grid", 3, "module: got 3"),
    ],
    ids=["names", "shapes", "dtype", "frozen", "buffers", "eval", "type"],
)
def test_a_module_that_does_not_fit(name: str, module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        around(made(name), tmp_path, module)


# --- cross-validation -------------------------------------------------------------------------------------------------


def cross_validated(**changes: Any) -> l2path.CVResult:
    settings: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.05, momentum=0.9), "lambdas": GRID, "epochs": 3,
        "batch_size": BATCH, "folds": 3, "seeds": (3, 11),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return l2path.cross_validate(changes.pop("module", noisy), classes(), **(settings | changes))


@cache
def cv() -> l2path.CVResult:
    return cross_validated()


MEMBERS = [{"lambdas": 0.1, "lr": 0.1, "seed": 3}, {"lambdas": 0.2, "lr": 0.2, "seed": 5}]
CV_CASES: dict[str, Callable[[], l2path.CVResult]] = {
    "plain": cv,
    "two axes": lambda: cross_validated(
        sweep={"lr": [0.1, 0.05]}, metrics={"accuracy": ACCURACY}, select="accuracy", seeds=None
    ),
    "members": lambda: cross_validated(lambdas=None, members=MEMBERS, seeds=None),
    "diverged": lambda: cross_validated(optimizer=l2path.sgd(lr=1e9), lambdas=[1e30, 1e29], seeds=None),
    "early stopping": lambda: cross_validated(early_stopping=l2path.EarlyStopping(patience=1), epochs=6, seeds=None),
}


def same_cv(a: l2path.CVResult, b: l2path.CVResult) -> None:
    same_result(a.members, b.members)
    same(a.folds, b.folds)
    for name in ("seeds", "seed_scores", "fold_scores", "cvm", "cvsd", "cvup", "cvlo", "one_dimensional", "boundary"):
        same(getattr(a, name), getattr(b, name), name)
    assert (str(a), repr(a), a._repr_html_()) == (str(b), repr(b), b._repr_html_())
    assert a.to_dataframe().equals(b.to_dataframe())
    if np.isfinite(b.cvm).any():
        assert a.index_min == b.index_min
        same(a.lambda_min, b.lambda_min)
        if b.one_dimensional:
            same(a.lambda_1se, b.lambda_1se)


@pytest.mark.parametrize("name", CV_CASES)
def test_cross_validations_come_back(name: str, tmp_path: Path) -> None:
    result = CV_CASES[name]()
    assert bool(np.isfinite(result.cvm).any()) is not (name == "diverged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = around(result, tmp_path)
    same_cv(loaded, result)
    same_cv(around(loaded, tmp_path), result)
    loaded.plot().savefig(io.BytesIO())


def test_a_loaded_cross_validation_predicts_and_cannot_refit(tmp_path: Path) -> None:
    loaded = around(cv(), tmp_path, noisy)
    x = classes(9, 5)[0]
    same(loaded.members.predict(x), cv().members.predict(x))
    with pytest.raises(ArgumentError, match=r"refit: .*lambdas=\[cv\.point\(2\)\['lambda'\]\].*epochs=3.*cross_valid"):
        loaded.refit(2)
    with pytest.raises(ArgumentError, match="at: got 9"):
        loaded.refit(9)
    refit = around(cv().refit(0).members, tmp_path, noisy)  # that can be kept by itself
    same(refit.predict(x), cv().refit(0).predict(x))


def test_means_that_were_weighted_stay_so(tmp_path: Path) -> None:
    @dataclass(frozen=True, repr=False, eq=False)
    class Weighted(l2path.CVResult):
        @cached_property
        def _summary(self) -> Any:
            return self.fold_scores[0], self.fold_scores[1]

    plain = cv()
    weighted = Weighted(plain.members, plain.folds, plain._prepare)
    loaded = around(weighted, tmp_path)
    assert str(loaded) == str(weighted) != str(plain)
    same(loaded.cvsd, weighted.cvsd)


# --- the schema -------------------------------------------------------------------------------------------------------


def test_every_field_has_its_place() -> None:
    """Whoever adds a field decides what becomes of it on disk, in ``path/saved.py``."""
    assert {f.name for f in fields(Outcome)} == {f.name for f in fields(l2path.PathResult)}
    assert {f.name for f in fields(Outcome)} == set(outcome_fields(contents(made("grid")), None))
    known = {
        Members: {"folds", "seeds", "points", "index", "shape", "axis_names", "lambdas", "hyper"},
        LambdaAxis: {"strengths", "labels", "values"},
        HyperAxis: {"values", "labels"},
        Names: {"params", "aliases", "exempt", "frozen"},
        Selection: {"name", "greater_is_better", "validation"},
        CVOutcome: {"members", "folds"},
        Functional: {
            "params",
            "buffers",
            "frozen",
            "aliases",
            "template",
            "unused",
            "changed",
            "renormalised",
            "substitutes",
            "places",  # made of the template
        },
        l2path.Fold: {"train", "test"},
    }
    for kind, names in known.items():
        assert {f.name for f in fields(kind)} == names, kind


def golden_path() -> l2path.PathResult:
    """What is in the golden file of a path; ``python -m tests.integration.test_saved`` writes it for a new schema."""
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(0.5)
    module[2].weight.requires_grad_(False)
    x = torch.tensor([[1.0], [-1.0], [2.0], [0.0]])
    return l2path.batch_train(
        module, (x, x), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.25), epochs=2, seeds=(0, 1),
        lambdas=[{"0.weight": 0.5}, l2path.weights_only(torch.tensor([[0.25]]))], validation=(x, x),
        metrics={"r": l2path.Metric(lambda o, t: -(o - t).abs().mean(), greater_is_better=True)},
    )  # fmt: skip


def golden_cv() -> l2path.CVResult:
    """What is in the golden file of a cross-validation."""
    x = torch.tensor([[1.0], [-1.0], [2.0], [0.0]])
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.5)
    return l2path.cross_validate(
        module, (x, x), loss_fn=F.mse_loss, optimizer=l2path.sgd(lr=0.25, momentum=0.1), epochs=2, lambdas=[1.0, 0.25],
        sweep={"momentum": [0.5]}, folds=[0, 0, 1, 1],
    )  # fmt: skip


def structure(tree: Any) -> Any:
    """A tree with its keys and tags, and without its values; of the engine every version says what it knows."""
    if isinstance(tree, dict):
        return {k: v if k == "$" else structure(v) for k, v in tree.items() if k != "engine"}
    if isinstance(tree, list):
        return [structure(v) for v in tree]
    return type(tree).__name__


@pytest.mark.parametrize(("kind", "make"), [("PathResult", golden_path), ("CVResult", golden_cv)])
def test_the_schema_is_that_of_the_golden_file(kind: str, make: Callable[[], Any], tmp_path: Path) -> None:
    """A change of what is written needs a new schema version, and a way to read the old one."""
    make().save(tmp_path / "now")
    found = []
    for path in (tmp_path / "now", GOLDEN / f"{kind}.1.l2path"):
        with zipfile.ZipFile(path) as archive:
            found.append(json.loads(archive.read("contents.json")))
            assert all(name.endswith((".npy", ".json")) for name in archive.namelist())
    now, golden = found
    engine = (golden["tree"].get("members") or golden["tree"])["engine"]
    assert {"kind", "member_chunk", "reason"} <= set(engine)
    assert structure(now["tree"]) == structure(golden["tree"])
    assert (now["schema"], now["layout"]) == (golden["schema"], golden["layout"]) == (1, 1)


def test_a_path_of_schema_1_is_read() -> None:
    path = GOLDEN / "PathResult.1.l2path"
    x = torch.tensor([[1.0], [2.0]])
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5), nn.Linear(1, 1, bias=False))
    module[2].weight.requires_grad_(False)
    for loaded in (load_result(path), load_result(path, module)):
        assert isinstance(loaded, l2path.PathResult)
        assert len(loaded) == 4
        assert loaded.table.seeds == (0, 0, 1, 1)
        assert loaded.table.lambdas is not None
        same(loaded.table.lambdas.labels[0], {"0.weight": 0.5})
        same(loaded.table.lambdas.labels[1], l2path.weights_only(torch.tensor([[0.25]])))
        same(loaded.lambdas_by_parameter["0.weight"].flatten(), torch.tensor([0.5, 0.25, 0.5, 0.25]))
        same(loaded.lambdas_by_parameter["0.bias"].flatten(), torch.zeros(4))
        state = loaded.member(0).state_dict()
        assert list(state) == ["0.weight", "0.bias", "2.weight"]
        same(state["2.weight"], torch.tensor([[0.5]]))
        assert loaded.select.greater_is_better is False
        assert list(loaded.history) == ["loss", "penalty", "objective", "val_loss", "val_r"]
        best = loaded.best
        # The members are y = 0.5 (w x + b): their scores can be had by hand.
        w, b = loaded.params["0.weight"].flatten(), loaded.params["0.bias"].flatten()
        rows = torch.tensor([1.0, -1.0, 2.0, 0.0])
        scores = ((0.5 * (rows * w[:, None] + b[:, None]) - rows) ** 2).mean(1)
        assert scores.tolist() == pytest.approx(loaded.scores.tolist(), rel=1e-5)
        assert best.index in (0, 1, 2, 3)
        assert scores[best.index] <= scores.min() + 0.5
    assert isinstance(loaded, l2path.PathResult)
    outputs = loaded.predict(x)
    assert torch.allclose(outputs[..., 0], 0.5 * (w[:, None] * x[:, 0] + b[:, None]))


def test_a_cross_validation_of_schema_1_is_read() -> None:
    loaded = load_result(GOLDEN / "CVResult.1.l2path")
    assert isinstance(loaded, l2path.CVResult)
    assert [fold.test.tolist() for fold in loaded.folds] == [[0, 1], [2, 3]]
    assert loaded.point(1) == {"momentum": 0.5, "lambda": 0.25}
    # One weight w on (x, x): the loss of a fold's held-out rows is (w - 1)^2 mean(x^2).
    w = loaded.members.params["weight"].flatten().reshape(2, 2)
    scores = (w - 1) ** 2 * torch.tensor([[1.0], [2.0]])
    assert loaded.fold_scores.reshape(2, 2).ravel().tolist() == pytest.approx(scores.flatten().tolist(), rel=1e-5)
    assert loaded.cvm.ravel().tolist() == pytest.approx(scores.mean(0).tolist(), rel=1e-5)
    assert loaded.lambda_min == 0.25


def test_a_newer_schema_and_another_kind(tmp_path: Path) -> None:
    made("grid").save(tmp_path / "result")
    with zipfile.ZipFile(tmp_path / "result") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for changes, message in (
        ({"schema": 2}, "PathResult in schema version 2 .* by a newer l2path"),
        ({"kind": "Checkpoint"}, "a file of Checkpoint; .*this reads PathResult and CVResult"),
    ):
        with zipfile.ZipFile(tmp_path / "changed", "w") as archive:
            text = json.dumps(json.loads(parts["contents.json"]) | changes)
            for name, data in (parts | {"contents.json": text.encode()}).items():
                archive.writestr(name, data)
        with pytest.raises(ArgumentError, match=message):
            load_result(tmp_path / "changed")
    assert read_file(tmp_path / "result", {"PathResult": 1}).schema == 1


if __name__ == "__main__":
    golden_path().save(GOLDEN / "PathResult.1.l2path")
    golden_cv().save(GOLDEN / "CVResult.1.l2path")
