"""What both estimators share: from arrays through cross-validation to one fitted module."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from l2path.crossval import CVResult, Refit, cross_validate
from l2path.errors import ArgumentError, BoundaryWarning, IncompleteWarning
from l2path.optimizers import Optimizer, adam
from l2path.path import Metric
from l2path.penalty import WeightsOnly, lambda_grid, weights_only
from l2path.penalty.axis import is_spec_list
from l2path.scores import FloatArray
from l2path.sklearn.modules import check_module, make_module, outputs_of
from l2path.sklearn.rows import Mask, learn, pairs_of, scaler_of, weights_of
from l2path.sklearn.scoring import Loss, RowLosses, results_table, scorer_metric, weighted
from l2path.types import LambdaSpec

DTYPES = [np.float64, np.float32]  # the first is what other dtypes become
LARGEST_SEED = 2**31 - 1


class L2PathEstimator(ABC, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Chooses an L2 strength by cross-validation and trains a module with it on all rows."""

    def __init__(
        self,
        module: Any = None,
        *,
        hidden_layer_sizes: Any = (64,),
        activation: str = "relu",
        lambdas: Any = None,
        rule: str = "1se",
        cv: Any = 5,
        scoring: Any = None,
        n_seeds: int = 1,
        optimizer: Any = None,
        lr: float = 0.005,
        epochs: int = 100,
        batch_size: int | None = 128,
        early_stopping: Any = None,
        standardize: bool = True,
        random_state: Any = None,
        engine: Any = "auto",
        progress: bool | None = False,
    ) -> None:
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.lambdas = lambdas
        self.rule = rule
        self.cv = cv
        self.scoring = scoring
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.standardize = standardize
        self.random_state = random_state
        self.engine = engine
        self.progress = progress

    @abstractmethod
    def _checked(self, X: Any, y: Any) -> tuple[FloatArray, Any]:
        """Return inputs and targets as arrays, or raise what scikit-learn does."""

    @abstractmethod
    def _encode(self, y: Any, weights: FloatArray | None) -> tuple[Any, int, RowLosses]:
        """Return the targets to train on, the number of outputs, and the loss of each row."""

    @abstractmethod
    def _decode(self, targets: Tensor) -> Any:
        """Return ``y`` for targets of training."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Cross-validate all lambdas, choose one, and train it on all rows.

        Parameters
        ----------
        X : array-like, [n, D]
            Trained in float32 if it is that, else in float64.
        y : array-like, [n], or of a regressor [n, T]
        sample_weight : array-like, [n], optional
            Multiply the losses of the rows, in training and where they are held out. Their scale does not matter; rows
            of weight 0 count as if they were not there.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For data that scikit-learn refuses. An :class:`ArgumentError`, for parameters, is one of them.
        NoScoreError
            If no lambda has a finite score in every fold.
        """
        self._check_parameters()
        X, y = self._checked(X, y)
        weights, kept = weights_of(sample_weight, X)
        X, y = X[kept], y[kept]
        targets, n_outputs, rows = self._encode(y, weights)
        seed = int(check_random_state(self.random_state).randint(LARGEST_SEED - self.n_seeds))
        cv = self._cross_validated(X, y, targets, weights, kept, Loss(rows, n_outputs), seed)
        self._choose(cv, seed)
        self.input_scaler_ = scaler_of(self.standardize, X, weights)
        return self

    def _check_parameters(self) -> None:
        """Refuse parameters of this class; those of ``cross_validate`` are its own to check."""
        check_module(self.module, self.hidden_layer_sizes, self.activation)
        if self.rule not in ("1se", "min"):
            raise ArgumentError("rule", got=repr(self.rule), expected="'1se' or 'min'", remedy="leave it at '1se'")
        whole = isinstance(self.n_seeds, (int, np.integer)) and not isinstance(self.n_seeds, bool)
        if not whole or self.n_seeds < 1:
            raise ArgumentError(
                "n_seeds", got=repr(self.n_seeds), expected="a whole number >= 1", remedy="leave it at 1"
            )
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer) and not callable(self.optimizer):
            raise ArgumentError(
                "optimizer",
                got=f"a {type(self.optimizer).__name__}",
                expected="an optimizer of l2path, or a function of lr that makes one",
                remedy="use for example l2path.sgd, or functools.partial(l2path.sgd, momentum=0.9)",
            )

    def _optimizer(self) -> Optimizer:
        if isinstance(self.optimizer, Optimizer):
            return self.optimizer
        made: Optimizer = (self.optimizer or adam)(lr=self.lr)
        return made

    def _lambda_spec(self) -> LambdaSpec:
        """Return the lambdas as ``cross_validate`` takes them: plain numbers are of weights only."""
        if self.lambdas is None:
            return weights_only(lambda_grid(1e-4, 1.0, 9, zero=True))
        if isinstance(self.lambdas, (WeightsOnly, Mapping)) or is_spec_list(self.lambdas):
            return self.lambdas
        return weights_only([self.lambdas] if np.ndim(self.lambdas) == 0 else self.lambdas)

    def _cross_validated(
        self,
        X: FloatArray,
        y: Any,
        targets: Any,
        weights: FloatArray | None,
        kept: Mask,
        loss: Loss,
        seed: int,
    ) -> CVResult:
        inputs: Any = torch.tensor(X)
        dtype = inputs.dtype
        if weights is not None:
            inputs, targets = (inputs, torch.tensor(weights)), (targets, weights)
        metrics: dict[str, Metric] = {}
        if self.scoring is not None:
            metrics["score"] = scorer_metric(self.scoring, self, self._decode)
        elif weights is not None:
            metrics["score"] = Metric(loss.weighted_mean)
        shape = (X.shape[1], loss.n_outputs)
        # With weights the boundary is told of below, where folds count by them.
        with untold(IncompleteWarning, *([] if weights is None else [BoundaryWarning])):
            cv = cross_validate(
                partial(make_module, self.module, self.hidden_layer_sizes, self.activation, *shape, dtype),
                (inputs, targets),
                loss_fn=loss,
                optimizer=self._optimizer(),
                lambdas=self._lambda_spec(),
                folds=pairs_of(self.cv, X, y, kept, classifier=is_classifier(self), seed=seed),
                preprocess=partial(learn, self.standardize),
                epochs=self.epochs,
                batch_size=self.batch_size,
                seeds=range(seed, seed + self.n_seeds),
                metrics=metrics,
                select="score" if metrics else "val_loss",
                early_stopping=self.early_stopping,
                engine=self.engine,
                progress=self.progress,
            )
        if not cv.members.complete:
            raise KeyboardInterrupt  # a search around this estimator shall end as well
        if weights is None:
            return cv
        cv = weighted(cv, weights)
        if cv.boundary is not None:
            warnings.warn(cv.boundary, BoundaryWarning, stacklevel=3)
        return cv

    def _choose(self, cv: CVResult, seed: int) -> None:
        """Set what is told of the choice, and train it on all rows."""
        if self.rule == "1se" and not cv.one_dimensional:
            raise ArgumentError(
                "rule",
                got="'1se' with lambdas that have no one order of strength",
                expected="one axis of lambdas that rise together",
                remedy="use rule='min'",
            )
        index = cv.index_1se if self.rule == "1se" else cv.index_min
        with untold(IncompleteWarning):
            refit: Refit = cv.refit(index, seeds=(seed,))
        if not refit.members.complete:
            raise KeyboardInterrupt
        points = [cv.point(p)["lambda"] for p in range(cv.members.table.n_points)]
        self.cv_ = cv
        self.cv_results_ = results_table(cv)
        self.lambdas_ = np.array(points) if all(isinstance(p, float) for p in points) else points
        self.best_index_ = index
        self.best_lambda_ = points[index]
        self.best_score_ = float(self.cv_results_["mean_test_score"][index])
        self.module_ = refit.module().eval()

    def _outputs(self, X: Any) -> FloatArray:
        """Return the outputs of the fitted module, ``[n, n_outputs]`` float64."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=DTYPES, order="C")
        return outputs_of(self.module_, self.input_scaler_.transform(X)).astype(np.float64)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out ``cv_``, which holds functions and modules of all members that cannot be pickled."""
        return {name: value for name, value in super().__getstate__().items() if name != "cv_"}


@contextmanager
def untold(*categories: type[Warning]) -> Iterator[None]:
    """Give no warnings of these kinds within: what they tell is dealt with."""
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield
