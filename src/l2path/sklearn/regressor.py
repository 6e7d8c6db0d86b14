"""``L2PathRegressor``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data
from torch import Tensor

from l2path.scores import FloatArray
from l2path.sklearn.base import DTYPES, L2PathEstimator
from l2path.sklearn.rows import scaler_of
from l2path.sklearn.scoring import RowLosses


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each row, the mean over its outputs."""
    return (outputs - targets).square().mean(1)


class L2PathRegressor(RegressorMixin, L2PathEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    r"""A regressor around any module, whose L2 strength is chosen by cross-validation.

    For each lambda and each fold it minimises
    :math:`\text{mean squared error} + \tfrac12 \lambda \sum |\text{weights}|^2`, all of them as one batched run, and
    trains the chosen lambda on all rows. Inputs and targets are standardised, so that lambda does not depend on their
    units.

    Parameters
    ----------
    module : callable, optional
        ``module(n_features, n_outputs) -> nn.Module``, which maps ``[B, n_features]`` to ``[B, n_outputs]``; n_outputs
        is the number of targets (1 for ``y`` of shape ``[n]``). A class such as ``nn.Linear`` will do. None is a
        multilayer perceptron. It is cast to the dtype of the inputs.
    hidden_layer_sizes : int or sequence of int
        Of the multilayer perceptron; ``()`` is a linear model.
    activation : {"relu", "tanh", "logistic", "identity"}
        Of the multilayer perceptron.
    lambdas : float, array-like, or spec, optional
        The candidates. Plain numbers are of the weights alone: biases and normalisation layers are not penalised. Any
        other spec of :func:`l2path.cross_validate` is taken as it is: ``{pattern: grid}``, element-wise lambdas, or a
        list of them. None is ``lambda_grid(1e-4, 1, 9, zero=True)``.
    rule : {"1se", "min"}
        Take the largest lambda within one standard error of the best score, or the one with the best score.
    cv : int, splitter or iterable of pairs
        A number of folds, for which rows are shuffled (a classifier keeps the proportions of the classes); a splitter
        of scikit-learn; or pairs (train, test) of positions.
    scoring : str or scorer, optional
        What chooses: a name of scikit-learn's scorers, or what ``make_scorer`` returns. None is the loss.
    n_seeds : int
        Initialisations (and orders of rows) that each lambda is scored with; the refit takes the first.
    optimizer : callable or Optimizer, optional
        A function of ``lr`` such as ``l2path.sgd``, or an optimizer, which brings its own learning rate (and cannot be
        pickled). None is ``l2path.adam``.
    lr : float
        Learning rate.
    epochs : int
        Passes over the rows.
    batch_size : int or None
        Rows in a batch; None is all of them.
    early_stopping : EarlyStopping, optional
        As for :func:`l2path.cross_validate`.
    standardize : bool
        Whether to standardise the inputs: in each fold by its training rows, for the refit by all rows.
    normalize_y : bool
        Whether to standardise the targets, by all rows. Predictions are in the units of ``y`` either way; turn it off
        for a module whose outputs have a range of their own.
    random_state : int, RandomState or None
        Of folds, initial weights, orders and random masks.
    engine : str or Engine
        As for :func:`l2path.cross_validate`: with "auto" a fit repeats to rounding, with "vmap" bit for bit.
    progress : bool or None
        Show a progress bar; None does on a terminal.

    Attributes
    ----------
    best_lambda_ : float, or what stands for it
        The chosen lambda. ``best_index_`` is its position in ``lambdas_``, ``best_score_`` its mean score.
    lambdas_ : array, [P], or list
        The candidates.
    cv_results_ : dict of arrays, [P]
        Scores in the manner of GridSearchCV, where greater is better: of the loss they are its negative, in units of
        the standardised targets.
    cv_ : CVResult
        The cross-validation itself: ``print(est.cv_)``, ``est.cv_.plot()``. Not kept by ``pickle`` and ``copy``.
    module_ : nn.Module
        The fitted module, in eval mode. It maps ``input_scaler_.transform(X)`` to ``target_scaler_.transform(y)``.
    input_scaler_, target_scaler_ : StandardScaler
        What was learned from all rows.
    n_features_in_ : int
    feature_names_in_ : array, [D]
        Where ``X`` had names that are strings.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> model = L2PathRegressor(hidden_layer_sizes=(), lambdas=[1.0, 0.1, 0.01], random_state=0, lr=0.1, epochs=50)
    >>> model.fit(X, X[:, 0] + 0.5 * np.sin(50 * X[:, 1])).best_lambda_
    0.1
    >>> model.predict(X).shape, model.lambdas_
    ((60,), array([1.  , 0.1 , 0.01]))
    """

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
        normalize_y: bool = True,
        random_state: Any = None,
        engine: Any = "auto",
        progress: bool | None = False,
    ) -> None:
        super().__init__(
            module,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            lambdas=lambdas,
            rule=rule,
            cv=cv,
            scoring=scoring,
            n_seeds=n_seeds,
            optimizer=optimizer,
            lr=lr,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            standardize=standardize,
            random_state=random_state,
            engine=engine,
            progress=progress,
        )
        self.normalize_y = normalize_y

    def _checked(self, X: Any, y: Any) -> tuple[FloatArray, Any]:
        X, y = validate_data(self, X, y, dtype=DTYPES, order="C", multi_output=True, y_numeric=True)
        return X, y.astype(np.float64)

    def _encode(self, y: Any, weights: FloatArray | None) -> tuple[Any, int, RowLosses]:
        columns = y.reshape(len(y), -1)
        # By all rows, not fold by fold: the unpenalised bias takes up the mean, and the scale is a unit of the loss
        # that all lambdas and folds share.
        self.target_scaler_ = scaler_of(self.normalize_y, columns, weights)
        self._one_column = y.ndim == 1
        return self.target_scaler_.transform(columns), columns.shape[1], squared_errors

    def _decode(self, targets: Tensor) -> Any:
        return self._in_units_of_y(targets.double().numpy())

    def _in_units_of_y(self, outputs: FloatArray) -> FloatArray:
        y: FloatArray = self.target_scaler_.inverse_transform(outputs)
        return y[:, 0] if self._one_column else y

    def predict(self, X: Any) -> FloatArray:
        """Return predictions in the units of ``y``.

        Parameters
        ----------
        X : array-like, [n, D]

        Returns
        -------
        array, [n], or [n, T] where ``y`` was that
        """
        return self._in_units_of_y(self._outputs(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
