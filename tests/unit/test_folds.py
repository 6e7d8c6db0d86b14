"""Folds: what is accepted, what is refused and how, and what is drawn."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import l2path
from l2path.crossval.folds import make_folds

selection = pytest.importorskip("sklearn.model_selection")
preprocessing = pytest.importorskip("sklearn.preprocessing")

N = 24
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(N) % 3
GROUPS = np.arange(N) // 4
NUMBERS = np.arange(N) % 4


def folds_of(folds: Any, *, inputs: Any = X, targets: Any = Y, groups: Any = None, seed: int = 0) -> list[Any]:
    found = make_folds(folds, N, inputs=inputs, targets=targets, groups=groups, seed=seed)
    return [(f.train.tolist(), f.test.tolist()) for f in found]


# --- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 7, N, np.int64(3)])
def test_a_number_draws_parts_of_the_published_order(count: int) -> None:
    found = folds_of(count, seed=3)
    order = np.array_split(l2path.data_order(N, 3, 0).numpy(), count)
    assert [test for _, test in found] == [sorted(part.tolist()) for part in order]
    assert all(sorted(train + test) == list(range(N)) for train, test in found)
    assert {len(test) for _, test in found} <= {N // count, N // count + 1}
    assert found == folds_of(count, seed=3)
    assert count == N or found != folds_of(count, seed=4)


SPLITTERS: dict[str, tuple[Any, Any]] = {
    "KFold": (selection.KFold(5), None),
    "StratifiedKFold": (selection.StratifiedKFold(4, shuffle=True, random_state=0), None),
    "GroupKFold": (selection.GroupKFold(3), GROUPS),
    "StratifiedGroupKFold": (selection.StratifiedGroupKFold(2), GROUPS),
    "LeaveOneGroupOut": (selection.LeaveOneGroupOut(), GROUPS),
    "TimeSeriesSplit": (selection.TimeSeriesSplit(4, gap=1), None),
    "ShuffleSplit": (selection.ShuffleSplit(4, test_size=5, random_state=0), None),
    "RepeatedKFold": (selection.RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), None),
    "PredefinedSplit": (selection.PredefinedSplit(np.where(NUMBERS > 1, -1, NUMBERS)), None),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_splitters_of_scikit_learn(name: str) -> None:
    splitter, groups = SPLITTERS[name]
    expected = [(a.tolist(), b.tolist()) for a, b in splitter.split(X.numpy(), Y.numpy(), groups)]
    assert folds_of(splitter, groups=groups) == expected
    assert folds_of(splitter, groups=None if groups is None else torch.from_numpy(groups)) == expected
    assert folds_of(splitter.split(X.numpy(), Y.numpy(), groups)) == expected  # the generator itself


def test_a_splitter_needs_no_inputs_of_one_tensor() -> None:
    expected = folds_of(selection.KFold(5))
    for inputs in (None, (X, X), {"x": X}, X.to(torch.bfloat16)):
        assert folds_of(selection.KFold(5), inputs=inputs, targets=None) == expected


NAMES = [str(number) for number in NUMBERS]
PAIRS = [(np.flatnonzero(f != NUMBERS), np.flatnonzero(f == NUMBERS)) for f in range(4)]


@pytest.mark.parametrize(
    "folds",
    [
        NUMBERS, NUMBERS.tolist(), tuple(NUMBERS.tolist()), torch.from_numpy(NUMBERS), NUMBERS.astype(np.uint8),
        NUMBERS * 7 - 3, PAIRS, tuple(PAIRS), iter(PAIRS), [list(pair) for pair in PAIRS],
        [(torch.from_numpy(a), b.tolist()) for a, b in PAIRS],
        [(f != NUMBERS, f == NUMBERS) for f in range(4)],
        [(torch.from_numpy(f != NUMBERS), torch.from_numpy(f == NUMBERS)) for f in range(4)],
        [np.array([f != NUMBERS, f == NUMBERS]) for f in range(4)],
    ],
)  # fmt: skip
def test_fold_numbers_pairs_and_masks_are_the_same_folds(folds: Any) -> None:
    assert folds_of(folds) == [(a.tolist(), b.tolist()) for a, b in PAIRS]


def test_two_pairs_of_two_rows_are_no_fold_numbers() -> None:
    found = make_folds([([0], [1]), ([1], [0])], 2, inputs=None, targets=None, groups=None, seed=0)
    assert [(f.train.tolist(), f.test.tolist()) for f in found] == [([0], [1]), ([1], [0])]


# --- what is refused --------------------------------------------------------------------------------------------------


def net(batchnorm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(5)] if batchnorm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()


def call(**changes: Any) -> l2path.CVResult:
    """A call that works, but for the changes."""
    settings: dict[str, Any] = {
        "module": net(), "data": (X, Y), "loss_fn": F.cross_entropy, "optimizer": l2path.sgd(lr=0.1),
        "lambdas": [0.1, 0.01], "epochs": 1, "batch_size": 8, "folds": 3,
    }  # fmt: skip
    settings |= changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", l2path.BoundaryWarning)
        return l2path.cross_validate(settings.pop("module"), settings.pop("data"), **settings)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """The rows one by one."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The rows, in their order alone."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


class Own(nn.Module):
    """A model that computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


OWN = {"module": Own(), "data": {"x": X, "labels": Y}, "loss_fn": l2path.model_loss()}


class Picky:
    """A transformer that asks for more rows than there are."""

    def fit(self, x: Any) -> None:
        raise ValueError(f"{len(x)} rows are too few")

    def transform(self, x: Any) -> Any:
        return x


def with_nan(train: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs / (train[:, 0] * 0).mean() * 0


def halves(train: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs[::2]


def nan_at(row: int, x: Tensor) -> Tensor:
    x = x.clone().double()
    x[row] = float("nan")
    return x


EVERY, FIRST = list(range(N)), list(range(10))

# name: (changes, argument named first, what the message holds besides)
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "more folds than rows": ({"folds": N + 1}, "folds", ["25 folds of 24 rows", "2 to 24"]),
    "one fold": ({"folds": 1}, "folds", ["1 folds", "2 to 24"]),
    "no folds": ({"folds": 0}, "folds", ["0 folds"]),
    "negative": ({"folds": -5}, "folds", ["-5"]),
    "one pair": ({"folds": [(FIRST, [11])]}, "folds", ["1 fold;", "batch_train"]),
    "no pairs": ({"folds": []}, "folds", ["0 folds"]),
    "one fold number": ({"folds": np.zeros(N, dtype=int)}, "folds[0]", ["train part", "at least one position"]),
    "bool": ({"folds": True}, "folds", ["True"]),
    "float": ({"folds": 5.0}, "folds", ["5.0", "splitter"]),
    "text": ({"folds": "stratified"}, "folds", ["stratified"]),
    "dict": ({"folds": {0: 1}}, "folds", ["{0: 1}"]),
    "splitter class": ({"folds": selection.KFold}, "folds", ["KFold"]),
    "None": ({"folds": None}, "folds", ["None"]),
    "too few fold numbers": ({"folds": NUMBERS[:-1]}, "folds", ["24 fold numbers"]),
    "fold numbers that are floats": ({"folds": NUMBERS + 0.5}, "folds", ["24 fold numbers"]),
    "fold numbers that are names": ({"folds": NAMES}, "folds", ["24 fold numbers"]),
    "row in both": ({"folds": [(FIRST, [9, 10]), (FIRST, [11])]}, "folds[0]", ["1 rows in train and test", "9"]),
    "repeated row": ({"folds": [(FIRST, [11]), ([1, 2, 2], [0])]}, "folds[1]", ["row 2 2 times", "train"]),
    "repeated held-out row": ({"folds": [(FIRST, [11, 11]), ([1], [0])]}, "folds[0]", ["row 11 2 times", "test"]),
    "out of range": ({"folds": [(FIRST, [24]), ([1], [0])]}, "folds[0]", ["position 24", "0 to 23"]),
    "negative position": ({"folds": [(FIRST, [-1]), ([1], [0])]}, "folds[0]", ["position -1"]),
    "empty test": ({"folds": [(FIRST, []), ([1], [0])]}, "folds[0]", ["test part", "at least one position"]),
    "empty train": ({"folds": [([], FIRST), ([1], [0])]}, "folds[0]", ["train part"]),
    "mask of another length": ({"folds": [([True] * 3, [False] * 3)] * 2}, "folds[0]", ["bool [3]"]),
    "positions in two axes": ({"folds": [([[1, 2]], [0])] * 2}, "folds[0]", ["[1, 2]"]),
    "three parts": ({"folds": [([1], [2], [3])] * 2}, "folds", ["pairs (train, test)"]),
    "groups beside a number": ({"groups": GROUPS}, "groups", ["GroupKFold"]),
    "groups beside fold numbers": ({"folds": NUMBERS, "groups": GROUPS}, "groups", ["splitter"]),
    "splitter without groups": ({"folds": selection.GroupKFold(3)}, "folds", ["groups", "grouped ones groups="]),
    "groups of another length": ({"folds": selection.GroupKFold(3), "groups": GROUPS[:5]}, "folds", ["inconsistent"]),
    "splitter with more folds than rows": ({"folds": selection.KFold(99)}, "folds", ["n_splits=99"]),
    "stratified by numbers": (
        {"folds": selection.StratifiedKFold(2), "data": (X, X[:, :3]), "loss_fn": F.mse_loss}, "folds", ["integer"],
    ),
    "stratified Dataset": ({"folds": selection.StratifiedKFold(2), "data": Rows()}, "folds", ["Dataset", "pairs"]),
    "loader": ({"data": DataLoader(Rows()), "batch_size": None}, "data", ["DataLoader", "dataset of the loader"]),
    "stream": ({"data": Stream()}, "data", ["Stream", "picked by index"]),
    "lengths differ": ({"data": (X, Y[:-1])}, "data", ["[24, 4]", "[23]"]),
    "NaN": ({"data": (nan_at(3, X), Y)}, "data", ["NaN"]),
    "NaN targets": (
        {"data": (X, nan_at(5, X[:, :3])), "preprocess": preprocessing.StandardScaler(), "loss_fn": F.mse_loss},
        "data", ["NaN"],
    ),
    "no lambdas": ({"lambdas": None}, "lambdas", ["sweep"]),
    "unknown metric": ({"select": "acuracy"}, "select", ["acuracy", "val_loss"]),
    "bare metric": ({"select": "l", "metrics": {"l": F.cross_entropy}}, "select", ["l2path.Metric"]),
    "epochs": ({"epochs": 0}, "epochs", ["0"]),
    "seeds twice": ({"seeds": (1, 1)}, "seeds", ["different"]),
    "torch optimizer": ({"optimizer": torch.optim.SGD(net().parameters())}, "optimizer", ["l2path.sgd"]),
    "inputs of another width": ({"data": (X[:, :3], Y)}, "data", ["[8, 3]", "Sequential"]),
    # 24 rows less 5, 5, 5, 5 or 4: 19 leave 1 of batches of 9, and 20 leave 2.
    "one row left in some folds": ({"module": net(True), "folds": 5, "batch_size": 9}, "batch_size", ["19 rows"]),
    "one row left in the last fold": (
        {"module": net(True), "folds": [(EVERY[:16], [20]), (EVERY[:17], [20])]}, "batch_size", ["17 rows"],
    ),
    "preprocess class": ({"preprocess": preprocessing.StandardScaler}, "preprocess", ["the class StandardScaler"]),
    "preprocess number": ({"preprocess": 3}, "preprocess", ["3", "fit and transform"]),
    "preprocess without transform": ({"preprocess": selection.KFold(3)}, "preprocess", ["KFold", "transform"]),
    "preprocess gives no function": ({"preprocess": lambda train: train}, "preprocess", ["returns a Tensor", "def"]),
    "preprocess fails": ({"preprocess": Picky()}, "preprocess", ["16 training rows", "ValueError", "too few"]),
    "preprocess gives NaN": ({"preprocess": with_nan}, "preprocess", ["NaN"]),
    "preprocess drops rows": ({"preprocess": halves}, "preprocess", ["[12] rows", "a row for each row"]),
    "preprocess of a Dataset": ({"preprocess": with_nan, "data": Rows()}, "preprocess", ["in the Dataset"]),
    "preprocess with model_loss": ({"preprocess": with_nan} | OWN, "preprocess", ["loss_fn(outputs, targets)"]),
    "transformer of two inputs": (
        {"preprocess": preprocessing.StandardScaler(), "data": ((X, X), Y)}, "preprocess", ["tuple", "a function"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_error_names_argument_got_expected_and_remedy(name: str) -> None:
    changes, argument, parts = CASES[name]
    with pytest.raises(l2path.ArgumentError) as caught:
        call(**changes)
    message = str(caught.value)
    assert message.startswith(f"{argument}: got "), message
    assert re.search(r": got .*; expected .*\. Remedy: .+", message, re.DOTALL), message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    "changes", [{}, {"data": TensorDataset(X, Y)}, {"data": Rows()}, {"data": [X.numpy(), Y]}, OWN]
)
def test_the_call_without_changes_works(changes: dict[str, Any]) -> None:
    cv = call(**changes)
    assert cv.fold_scores.shape == (3, 2)
    assert cv.refit().members.table.seeds == (0,)


# --- classes that are missing -----------------------------------------------------------------------------------------


def test_classes_that_are_held_out_and_not_trained_on() -> None:
    with pytest.warns(
        l2path.MissingClassWarning, match=r"3 of 3 folds .* \(fold 0: \[0\]\).*StratifiedKFold"
    ) as caught:
        call(folds=Y.tolist())
    own = [w for w in caught if w.category is l2path.MissingClassWarning]
    assert len(own) == 1
    assert own[0].filename == __file__


@pytest.mark.parametrize("targets", [torch.arange(N), X[:, 0]])
def test_targets_that_are_no_classes_are_not_missed(targets: Tensor) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], targets.double())

    call(data=(X, targets), loss_fn=loss, folds=2)


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_a_transformer_is_copied_and_given_the_targets() -> None:
    feature_selection = pytest.importorskip("sklearn.feature_selection")
    best = feature_selection.SelectKBest(feature_selection.f_classif, k=2)
    module = nn.Sequential(nn.Linear(2, 3)).double()
    cv = call(preprocess=best, module=module)
    assert not hasattr(best, "scores_")
    refit = cv.refit()
    expected = feature_selection.SelectKBest(feature_selection.f_classif, k=2).fit(X.numpy(), Y.numpy())
    assert refit.transform is not None
    np.testing.assert_array_equal(refit.transform(X), expected.transform(X.numpy()))


def test_what_a_transformer_gives_has_the_modules_dtype() -> None:
    # Whole numbers that become fractions; the dtype of the inputs would cut them to 0.
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    counts = torch.arange(4 * N).reshape(N, 4) % 7
    cv = call(data=(counts, Y), preprocess=preprocessing.StandardScaler(), module=net().float(), loss_fn=loss)
    assert set(seen) == {torch.float32}
    transform = cv.refit().transform
    assert transform is not None
    found = transform(counts.numpy())
    assert found.dtype == torch.float32
    expected = preprocessing.StandardScaler().fit_transform(counts.double().numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_nan_is_for_the_preprocessing_to_fill_in() -> None:
    impute = pytest.importorskip("sklearn.impute")
    cv = call(data=(nan_at(3, X), Y), preprocess=impute.SimpleImputer())
    assert np.isfinite(cv.cvm).all()
    assert bool(torch.isfinite(cv.refit().predict(nan_at(3, X))).all())
    with pytest.raises(l2path.ArgumentError, match=r"preprocess: got NaN"):
        call(data=(nan_at(3, X), Y), preprocess=preprocessing.StandardScaler())


def test_a_sparse_transformer_and_one_that_gives_whole_numbers() -> None:
    columns = (torch.arange(4 * N).reshape(N, 4) % 3).double()
    cv = call(
        data=(columns, Y), preprocess=preprocessing.OneHotEncoder(), module=nn.Sequential(nn.Linear(12, 3)).double()
    )
    transform = cv.refit().transform
    assert transform is not None
    assert transform(columns).shape == (N, 12)

    bins = preprocessing.FunctionTransformer(lambda x: x.astype(np.int64))

    def embed() -> nn.Module:
        return nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(8, 3)).double()

    assert np.isfinite(call(data=(columns, Y), preprocess=bins, module=embed).cvm).all()


def test_a_function_of_a_tree_of_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out = self.net(a - b)
            assert isinstance(out, Tensor)
            return out

    rows = []

    def centred(train: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        rows.append(len(train["a"]))
        mean = train["a"].mean(0)
        return lambda inputs: {"a": inputs["a"] - mean, "b": inputs["b"]}

    cv = call(module=Two(), data=({"a": X, "b": X.flip(0)}, Y), preprocess=centred)
    cv.refit()
    assert rows == [16, 16, 16, N]
