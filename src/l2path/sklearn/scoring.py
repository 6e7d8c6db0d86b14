"""What is minimised, what a held-out fold is scored by, and the table of scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import get_scorer
from torch import Tensor

from l2path.crossval import CVResult
from l2path.errors import ArgumentError
from l2path.path import Metric
from l2path.scores import FloatArray, fold_summary

RowLosses = Callable[[Tensor, Tensor], Tensor]
"""``(outputs [B, n_outputs], targets [B, ...]) -> [B]``"""


@dataclass(frozen=True)
class Loss:
    """The mean loss of a batch; targets are ``y``, or ``(y, weights)``.

    Weights have a mean of 1 over all rows, and the loss of a batch is the mean of weight times loss, not divided by the
    weights of the batch: its expectation over batches is then the weighted mean over all rows.
    """

    rows: RowLosses
    n_outputs: int

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss, 0-d."""
        y, weights = split(targets)
        losses = self.each(outputs, y)
        return losses.mean() if weights is None else (weights * losses).mean()

    def each(self, outputs: Any, y: Tensor) -> Tensor:
        """Return the loss of each row, ``[B]``."""
        expected = (len(y), self.n_outputs)
        if not isinstance(outputs, Tensor) or outputs.shape != expected:
            got = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise ArgumentError(
                "module",
                got=f"outputs of {got} for {expected[0]} rows",
                expected=f"shape {list(expected)}: n_outputs = {self.n_outputs}",
                remedy="end the module with a layer of n_outputs, the second argument of its factory",
            )
        return self.rows(outputs, y)

    def weighted_mean(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of all rows, by their weights."""
        y, weights = split(targets)
        losses = self.each(outputs, y)
        return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def split(targets: Any) -> tuple[Any, Any]:
    """Return ``y`` and the weights, or None."""
    return (targets[0], targets[1]) if isinstance(targets, (tuple, list)) else (targets, None)


def scorer_metric(scoring: Any, estimator: Any, truth: Callable[[Tensor], Any]) -> Metric:
    """Return a scorer of scikit-learn as a metric of outputs.

    Parameters
    ----------
    scoring : str or scorer
    estimator : estimator
        With all that turns outputs into predictions; a copy of it is what the scorer sees.
    truth : callable
        Turns targets of training back into ``y``.
    """
    scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
    if not callable(scorer):
        raise ArgumentError(
            "scoring",
            got=repr(scoring),
            expected="a name of scikit-learn's scorers, or what make_scorer returns",
            remedy="see sklearn.metrics.get_scorer_names(), or leave it out for the loss",
        )
    seen = copy.copy(estimator)
    seen._outputs = np.asarray  # its inputs are outputs of the module

    def function(outputs: Tensor, targets: Any) -> Any:
        y, weights = split(targets)
        more = {} if weights is None else {"sample_weight": weights.double().cpu().numpy()}
        return scorer(seen, outputs.double().cpu().numpy(), truth(y.cpu()), **more)

    return Metric(function, greater_is_better=True)


@dataclass(frozen=True, repr=False, eq=False)
class WeightedCVResult(CVResult):
    """A cross-validated path whose folds count by the weights of their held-out rows.

    Attributes
    ----------
    weights : array, [n]
        Of all rows.
    """

    weights: FloatArray = field(kw_only=True)

    @cached_property
    def _summary(self) -> tuple[FloatArray, FloatArray]:
        sizes = np.array([self.weights[fold.test].sum() for fold in self.folds])
        shape = self.members.table.shape
        cvm, cvsd = fold_summary(self.fold_scores.reshape(len(self.folds), -1), sizes)
        return cvm.reshape(shape), cvsd.reshape(shape)


def weighted(cv: CVResult, weights: FloatArray) -> WeightedCVResult:
    """Return a result whose folds count by the weights of their held-out rows."""
    return WeightedCVResult(**{f.name: getattr(cv, f.name) for f in fields(cv)}, weights=weights)


def results_table(cv: CVResult) -> dict[str, Any]:
    """Return the scores in the manner of GridSearchCV: greater is better, so that losses are negative.

    ``mean_test_score`` is ``cvm``, which weights the folds by their rows, and ``se_test_score`` its standard error.
    """
    sign = 1.0 if cv.members.select.greater_is_better else -1.0
    points = [cv.point(p)["lambda"] for p in range(cv.members.table.n_points)]
    scores = sign * cv.fold_scores
    mean = sign * cv.cvm
    values = np.empty(len(points), dtype=object)
    values[:] = points
    table: dict[str, Any] = {
        "params": [{"lambda": point} for point in points],
        "param_lambda": np.ma.MaskedArray(values, mask=False),
    }
    table |= {f"split{f}_test_score": own for f, own in enumerate(scores)}
    with np.errstate(invalid="ignore", over="ignore"):
        table["std_test_score"] = scores.std(axis=0)
    table["mean_test_score"] = mean
    table["se_test_score"] = cv.cvsd
    table["rank_test_score"] = rankdata(-np.where(np.isfinite(mean), mean, -np.inf), method="min").astype(np.int32)
    return table
