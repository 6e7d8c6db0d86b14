"""Results as DataFrames and in notebooks: the numbers of the print, and what is safe to show."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import l2path
from l2path.tables import SHOWN, Table
from tests.models import BATCH, GRID, classes, noisy, smooth, train

ACCURACY = l2path.Metric(lambda o, t: (o.argmax(1) == t).float().mean(), greater_is_better=True)
pytestmark = pytest.mark.filterwarnings("ignore::l2path.L2PathWarning")


@cache
def cv() -> l2path.CVResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return l2path.cross_validate(
            noisy, classes(), loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.05), lambdas=GRID, epochs=2,
            batch_size=BATCH, folds=3, seeds=(3, 11), metrics={"accuracy": ACCURACY},
        )  # fmt: skip


# --- DataFrames -------------------------------------------------------------------------------------------------------


def test_a_row_for_each_member() -> None:
    result = train(metrics={"accuracy": ACCURACY}, seeds=(2, 7), sweep={"lr": [0.1, 0.05]}, select="accuracy")
    frame = result.to_dataframe()
    assert list(frame) == [
        "fold", "seed", "point", "lr", "lambda", "score", "loss", "penalty", "objective", "val_loss", "val_accuracy",
        "epochs_trained", "epochs_kept", "status", "diverged_at", "standard_error", "difference", "difference_error",
    ]  # fmt: skip
    assert frame.index.name == "member"
    assert len(frame) == len(result) == 12
    assert [n for n in frame if not pd.api.types.is_numeric_dtype(frame[n])] == ["status"]
    for k in range(len(result)):
        member, row = result.member(k), frame.loc[k]
        assert (row["seed"], row["lr"], row["lambda"]) == (member.seed, member.hyper["lr"], member.lambdas)
        assert row["score"] == member.score == row["val_accuracy"]
        assert [row[name] for name in result.history] == [float(h[-1, k]) for h in result.history.values()]
    assert frame["point"].tolist() == list(result.table.points)
    means = frame.groupby(["lr", "lambda"])["score"].mean()
    assert means.max() == pytest.approx(float(result.cvm.max()), rel=1e-12)
    assert frame["difference"][result.best.index] == 0.0
    assert frame["diverged_at"].isna().all()


def test_what_the_weights_of_a_member_did_not_score_is_left_open() -> None:
    result = train(lambdas=[1e24, 0.1, 0.0], epochs=25, early_stopping=l2path.EarlyStopping(patience=1))
    frame = result.to_dataframe()
    assert result.status[0] == "diverged"
    assert frame["diverged_at"].tolist()[0] == result.diverged_at[0]
    assert frame["diverged_at"].dtype == "Int64"
    assert frame.loc[0, ["score", *result.history]].isna().all()
    for k in (1, 2):  # the epoch that is kept, and not the last one
        kept = result.epochs_kept[k]
        assert kept < result.epochs_trained[k]
        assert frame["val_loss"][k] == float(result.history["val_loss"][kept - 1, k]) == frame["score"][k]
    assert frame["score"].idxmin() == result.best.index
    halved = train(epochs=6, halving=l2path.SuccessiveHalving(min_epochs=2))
    out = [k for k, status in enumerate(halved.status) if status == "eliminated"]
    assert out
    assert halved.to_dataframe()["score"].isna().tolist() == [k in out for k in range(len(halved))]


def test_what_members_trained_with_is_numbers_where_it_can_be() -> None:
    frame = train(lambdas={"0.*": GRID, "3.weight": 0.1}).to_dataframe()
    assert frame["lambda[0.*]"].tolist() == GRID.tolist()
    assert frame["lambda[3.weight]"].tolist() == [0.1] * 3
    frame = train(
        lambdas=None, optimizer=l2path.adamw(lr=0.01), sweep={"decay": {"0.*": [0.5, 0.1], "*": 0.0}}
    ).to_dataframe()
    assert frame["decay[0.*]"].tolist() == [0.5, 0.1]
    assert "lambda" not in frame
    mixed = [{"*": 0.1, "0.weight": torch.full((8, 5), 0.2)}, l2path.weights_only(0.5)]
    frame = train(lambdas=mixed).to_dataframe()
    assert frame["lambda"].tolist() == ["{*: 0.1, 0.weight: 0.2}", "weights 0.5"]
    assert "score" not in train(validation=None).to_dataframe()


def test_a_row_for_each_epoch_and_member() -> None:
    result = train(lambdas=[1e24, 0.1, 0.0], epochs=25, early_stopping=l2path.EarlyStopping(patience=1))
    frame = result.to_dataframe(history=True)
    assert list(frame) == ["epoch", "member", "fold", "seed", "point", "lambda", *result.history]
    assert len(frame) == sum(result.epochs_trained)
    assert frame.groupby("member")["epoch"].max().reindex(range(3), fill_value=0).tolist() == [*result.epochs_trained]
    assert frame["epoch"].min() == 1
    assert not frame.isna().to_numpy().any()
    for name, history in result.history.items():
        wide = frame.pivot_table(index="epoch", columns="member", values=name)
        for k in wide:
            own = wide[k].dropna().to_numpy()
            np.testing.assert_array_equal(own, history[: len(own), k].numpy())
    assert frame["lambda"].tolist() == [[1e24, 0.1, 0.0][k] for k in frame["member"]]


def test_a_row_for_each_point() -> None:
    frame = cv().to_dataframe()
    assert list(frame) == [
        "lambda", "cvm", "cvsd", "cvup", "cvlo", "fold_0", "fold_1", "fold_2", "is_min", "is_1se",
    ]  # fmt: skip
    assert frame.index.name == "point"
    assert frame["lambda"].tolist() == GRID.tolist()
    assert frame["lambda"][frame["is_min"]].item() == cv().lambda_min
    assert frame["lambda"][frame["is_1se"]].item() == cv().lambda_1se
    members = cv().members.to_dataframe()  # the same from single members: a mean over seeds, then over folds
    folds = members.groupby(["fold", "lambda"])["val_loss"].mean().unstack("fold")
    for f in range(3):
        np.testing.assert_allclose(folds.loc[frame["lambda"], f], frame[f"fold_{f}"], rtol=1e-12)
    sizes = [len(fold.test) for fold in cv().folds]
    np.testing.assert_allclose(np.average(folds.loc[frame["lambda"]], axis=1, weights=sizes), frame["cvm"], rtol=1e-12)
    np.testing.assert_allclose(frame["cvup"] - frame["cvlo"], 2 * frame["cvsd"], rtol=1e-12)


def test_points_of_two_axes() -> None:
    result = l2path.cross_validate(
        smooth(), classes(), loss_fn=F.cross_entropy, optimizer=l2path.sgd(lr=0.05), lambdas=GRID,
        sweep={"lr": [0.1, 0.05]}, epochs=1, folds=2,
    )  # fmt: skip
    frame = result.to_dataframe()
    assert list(frame)[:2] == ["lr", "lambda"]
    assert frame["lr"].tolist() == [0.1] * 3 + [0.05] * 3
    assert frame["is_min"].sum() == 1
    assert "is_1se" not in frame  # there is none
    np.testing.assert_array_equal(frame["cvm"].to_numpy().reshape(2, 3), result.cvm)


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(epochs=1)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in ("result.to_dataframe()", "result.to_dataframe(history=True)", "cv().to_dataframe()"):
        with pytest.raises(l2path.MissingExtraError, match=r"pip install 'l2path\[pandas\]'"):
            eval(call, {"result": result, "cv": cv})


# --- notebooks --------------------------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """Reads the tables and notes of a page, and complains about tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.bold: list[bool] = []
        self.notes: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)
        if tag == "br":
            self.notes.append("")
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.bold.append("bold" in (dict(attrs).get("style") or ""))
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "p":
            self.notes[-1] += data.strip("\n")


def page(result: Any) -> Cells:
    return Cells(result._repr_html_())


@pytest.mark.parametrize("kind", ["path", "seeds", "cv"])
def test_a_notebook_shows_what_is_printed(kind: str) -> None:
    result: Any = cv() if kind == "cv" else train(seeds=(0, 1) if kind == "seeds" else (0,))
    shown, lines = page(result), str(result).splitlines()
    end = lines.index("")
    assert [" ".join(row).split() for row in shown.rows] == [line.split() for line in lines[:end]]
    assert shown.notes == lines[end + 1 :]


def test_chosen_rows_are_bold() -> None:
    result = train()
    assert [row[0] for row, bold in zip(*bodies(result), strict=True) if bold] == [str(result.best.index)]
    chosen = {str(cv().index_min), str(cv().index_1se)}
    assert {row[0] for row, bold in zip(*bodies(cv()), strict=True) if bold} == chosen
    assert not any(page(train(validation=None)).bold)
    assert not any(page(cv().members).bold)  # of a cross-validation no single member is chosen


def bodies(result: Any) -> tuple[list[list[str]], list[bool]]:
    found = page(result)
    return found.rows[1:], found.bold[1:]


def test_names_cannot_break_out() -> None:
    module = nn.ModuleDict({"<script>alert(1)</script> & \"'": nn.Linear(5, 3), "b": nn.Linear(5, 3)}).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: Any) -> Any:
            return sum(part(x) for part in self.parts.values())

    metrics = {"<b>": ACCURACY}
    result = train(module=Net(), lambdas={"parts.<*": GRID, "parts.b.*": 0.0}, metrics=metrics, select="<b>")
    shown = page(result)
    assert shown.tags == {"div", "table", "thead", "tbody", "tr", "th", "td", "p", "br"}
    assert "lambda[parts.<*]" in shown.rows[0]
    assert "val_<b>" in shown.rows[0]
    assert any("parts.b.weight" in note for note in shown.notes)
    strange = page_of(Table([("<i>", ["&amp;", "</table>"])], (1,), ["a < b && c"]))
    assert strange.rows == [["<i>"], ["&amp;"], ["</table>"]]
    assert strange.notes == ["a < b && c"]


def page_of(table: Table) -> Cells:
    return Cells(table.html())


def test_colours_are_the_pages_own_and_nothing_is_fetched() -> None:
    for result in (train(), cv()):
        shown = page(result)
        styles = {value for name, value in shown.attributes if name == "style"}
        assert {name for name, _ in shown.attributes} == {"style", "scope"}
        assert not any(word in style for style in styles if style for word in ("color", "background", "url"))
        assert "http" not in result._repr_html_()


def test_a_long_table_is_cut_around_the_marked_rows() -> None:
    cells = [str(k) for k in range(SHOWN + 1)]
    table = Table([("n", cells), ("m", cells)], (30,))
    shown = page_of(table)
    assert [row[0] for row in shown.rows[1:]] == (
        [*map(str, range(8)), "...", *map(str, range(27, 34)), "...", *map(str, range(SHOWN - 7, SHOWN + 1))]
    )
    assert [row[0] for row, bold in zip(shown.rows, shown.bold, strict=True) if bold] == ["30"]
    assert [line.split()[0] for line in table.text().splitlines()[1:] if line] == [row[0] for row in shown.rows[1:]]
    assert len(Table([("n", cells[:-1])]).rows()) == SHOWN
