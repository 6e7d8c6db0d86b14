"""``L2PathClassifier``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor
from torch.nn import functional as F

from l2path.errors import ArgumentError
from l2path.scores import FloatArray
from l2path.sklearn.base import DTYPES, L2PathEstimator
from l2path.sklearn.scoring import RowLosses


def sigmoid_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each row from one logit; targets are 0 or 1, ``[B, 1]``."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")[:, 0]


def softmax_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each row; targets are numbers of classes, ``[B]``."""
    return F.cross_entropy(outputs, targets, reduction="none")


class L2PathClassifier(ClassifierMixin, L2PathEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    r"""A classifier around any module, whose L2 strength is chosen by cross-validation.

    For each lambda and each fold it minimises
    :math:`\text{mean cross-entropy} + \tfrac12 \lambda \sum |\text{weights}|^2`, all of them as one batched run, and
    trains the chosen lambda on all rows. Two classes have one output, a logit, as in scikit-learn's LogisticRegression:
    lambda is :math:`1 / (nC)` for both. Two logits would need twice the lambda for the same probabilities.

    Parameters
    ----------
    module : callable, optional
        ``module(n_features, n_outputs) -> nn.Module``, which maps ``[B, n_features]`` to logits ``[B, n_outputs]``;
        n_outputs is 1 for two classes, else their number.
    hidden_layer_sizes, activation, lambdas, rule, cv, scoring, n_seeds, optimizer, lr, epochs, batch_size
        As for :class:`L2PathRegressor`.
    early_stopping, standardize, random_state, engine, progress
        As for :class:`L2PathRegressor`.

    Attributes
    ----------
    classes_ : array
        The labels, sorted.
    best_lambda_, best_index_, best_score_, lambdas_, cv_results_, cv_, module_, input_scaler_
        As for :class:`L2PathRegressor`; of the loss, scores are the negative cross-entropy.
    n_features_in_, feature_names_in_
        As for :class:`L2PathRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> y = np.where(X[:, 0] + X[:, 1] ** 2 > 1, "yes", "no")
    >>> model = L2PathClassifier(lambdas=[1.0, 0.1, 0.01, 0.0], random_state=0, lr=0.02, epochs=20).fit(X, y)
    >>> model.best_lambda_, model.classes_
    (0.01, array(['no', 'yes'], dtype='<U3'))
    >>> model.predict_proba(X).shape
    (60, 2)
    """

    def _checked(self, X: Any, y: Any) -> tuple[FloatArray, Any]:
        X, y = validate_data(self, X, y, dtype=DTYPES, order="C")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return X, y

    def _encode(self, y: Any, weights: FloatArray | None) -> tuple[Any, int, RowLosses]:
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError(
                "y",
                got=f"1 class, {self.classes_[0]!r}",
                expected="at least two classes in rows of weight above zero",
                remedy="check how the rows were picked",
            )
        if len(self.classes_) == 2:
            return numbers[:, None].astype(np.float64), 1, sigmoid_losses
        return numbers.astype(np.int64), len(self.classes_), softmax_losses

    def _decode(self, targets: Tensor) -> Any:
        return self.classes_[targets.long().numpy().ravel()]

    def decision_function(self, X: Any) -> FloatArray:
        """Return the logits.

        Parameters
        ----------
        X : array-like, [n, D]

        Returns
        -------
        array, [n] for two classes (above zero is ``classes_[1]``), else [n, classes]
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict_proba(self, X: Any) -> FloatArray:
        """Return the probabilities of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like, [n, D]

        Returns
        -------
        array, [n, classes]
        """
        logits = self.decision_function(X)
        # Not 1 - expit(logits), which is 0 for large ones.
        found: FloatArray = np.stack([expit(-logits), expit(logits)], 1) if logits.ndim == 1 else softmax(logits, 1)
        return found

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the most probable labels.

        Parameters
        ----------
        X : array-like, [n, D]

        Returns
        -------
        array, [n]
        """
        logits = self.decision_function(X)
        found: npt.NDArray[Any] = self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]
        return found
