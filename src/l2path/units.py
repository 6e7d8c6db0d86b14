"""Convert L2 strengths between l2path and other libraries.

Here lambda stands in ``mean data loss + 1/2 * lambda * |w|^2``. Every function takes a float, an array or
a tensor and returns the same kind. ``n`` is the number of rows trained on: a fixed ``alpha`` or ``C`` is
another lambda in each fold, and another one at the final fit.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2path.errors import ArgumentError

# npt.NDArray[Any]: integer arrays come in and floating ones go out.
Value = TypeVar("Value", float, Tensor, npt.NDArray[Any])
Loss = Literal["mse", "half_mse"]


def from_sklearn_alpha(alpha: Value, *, n: int, targets: int = 1, loss: Loss = "mse") -> Value:
    r"""Convert the ``alpha`` of scikit-learn's ``Ridge`` to lambda.

    ``Ridge`` minimises :math:`\|Y - XW\|^2 + \alpha \|W\|^2`. With the mean over all :math:`nT` entries,
    :math:`\lambda = 2 \alpha / (nT)` on mean squared error and :math:`\lambda = \alpha / (nT)` on half of it.

    Parameters
    ----------
    alpha : float, array or Tensor
        scikit-learn's strength, >= 0.
    n : int
        Rows trained on.
    targets : int
        Outputs T that the mean runs over too.
    loss : {"mse", "half_mse"}
        The data loss that lambda is added to.

    Returns
    -------
    float, array or Tensor
        Lambda, as the kind that came.

    Raises
    ------
    ArgumentError
        For strengths below zero, not finite or not real, n or targets below 1, and an unknown loss.

    Examples
    --------
    >>> from_sklearn_alpha(1.0, n=100)
    0.02
    """
    return _checked("alpha", alpha) / _ridge_factor(n, targets, loss)


def to_sklearn_alpha(lambda_: Value, *, n: int, targets: int = 1, loss: Loss = "mse") -> Value:
    r"""Convert lambda to the ``alpha`` of scikit-learn's ``Ridge``.

    :math:`\alpha = nT\lambda / 2` on mean squared error, twice that on half of it; the inverse of
    `from_sklearn_alpha`, with the same arguments and errors.

    Examples
    --------
    >>> to_sklearn_alpha(0.02, n=100)
    1.0
    """
    return _checked("lambda_", lambda_) * _ridge_factor(n, targets, loss)


def from_sklearn_C(C: Value, *, n: int) -> Value:
    r"""Convert the ``C`` of scikit-learn's ``LogisticRegression`` to lambda on mean cross-entropy.

    It minimises :math:`C \sum_i \ell_i + \frac12 \|w\|^2`, hence :math:`\lambda = 1 / (nC)`. The softmax of
    two logits needs twice the lambda of the sigmoid of one for the same probabilities.

    Parameters
    ----------
    C : float, array or Tensor
        Inverse strength, > 0; infinity gives 0.
    n : int
        Rows trained on (the sum of the sample weights, if there are any).

    Returns
    -------
    float, array or Tensor
        Lambda, as the kind that came.

    Raises
    ------
    ArgumentError
        For C not above zero, NaN or not real, and n below 1.

    Examples
    --------
    >>> from_sklearn_C(1.0, n=100)
    0.01
    """
    return _inverse(_checked("C", C, positive=True, infinite=True), _count("n", n))


def to_sklearn_C(lambda_: Value, *, n: int) -> Value:
    r"""Convert lambda on mean cross-entropy to the ``C`` of scikit-learn's ``LogisticRegression``.

    :math:`C = 1 / (n\lambda)`; lambda 0 gives infinity. The inverse of `from_sklearn_C`; raises
    `ArgumentError` for strengths below zero, not finite or not real, and n below 1.

    Examples
    --------
    >>> to_sklearn_C(0.01, n=100)
    1.0
    >>> to_sklearn_C(0.0, n=100)
    inf
    """
    return _inverse(_checked("lambda_", lambda_), _count("n", n))


def from_keras(l: Value) -> Value:  # noqa: E741  the letter of Keras' l2
    r"""Convert the strength ``l`` of Keras' ``regularizers.L2(l)`` to lambda.

    Keras adds :math:`l \|w\|^2`, without the half: :math:`\lambda = 2l`. The ``weight_decay`` of Keras' optimizers,
    SGD's too, is another thing: it shrinks the weights beside the step, as AdamW does, and has no lambda.

    Raises `ArgumentError` for strengths below zero, not finite or not real.

    Examples
    --------
    >>> from_keras(0.01)
    0.02
    """
    return _checked("l", l) * 2.0


def to_keras(lambda_: Value) -> Value:
    r"""Convert lambda to the strength ``l`` of Keras' ``regularizers.L2(l)``: :math:`l = \lambda / 2`.

    Raises `ArgumentError` for strengths below zero, not finite or not real.

    Examples
    --------
    >>> to_keras(0.02)
    0.01
    """
    return _checked("lambda_", lambda_) * 0.5


def from_weight_decay(weight_decay: Value) -> Value:
    r"""Convert the ``weight_decay`` of ``torch.optim.SGD`` or ``Adam`` to lambda: the same number.

    Both add :math:`\lambda\theta` to the gradient, the gradient of :math:`\frac12\lambda\|\theta\|^2`.
    The ``weight_decay`` of ``AdamW`` is another thing: it shrinks the weights beside the preconditioned step,
    belongs to no objective and has no lambda. It is l2path's ``decay``.

    Raises `ArgumentError` for strengths below zero, not finite or not real.

    Examples
    --------
    >>> from_weight_decay(5e-4)
    0.0005
    """
    return _checked("weight_decay", weight_decay) * 1.0


def to_weight_decay(lambda_: Value) -> Value:
    r"""Convert lambda to the ``weight_decay`` of ``torch.optim.SGD`` or ``Adam``: the same number.

    Not that of ``AdamW``; see `from_weight_decay`, also for the errors.

    Examples
    --------
    >>> to_weight_decay(5e-4)
    0.0005
    """
    return _checked("lambda_", lambda_) * 1.0


def from_glmnet(lambda_: Value, *, sd_y: float) -> Value:
    r"""Convert the lambda of a gaussian glmnet fit with ``alpha = 0`` to lambda on half mean squared error.

    With ``family = "gaussian"`` glmnet scales y to unit variance inside, hence
    :math:`\lambda = \lambda_\text{glmnet} / s_y` with :math:`s_y = \sqrt{\frac1n \sum_i (y_i - \bar y)^2}`, for
    ``standardize = FALSE``. On mean squared error (not halved) lambda is twice that. See the notes for its default,
    ``standardize = TRUE``, and for other families.

    Parameters
    ----------
    lambda_ : float, array or Tensor
        glmnet's strength, >= 0.
    sd_y : float
        Standard deviation of the targets of the rows trained on, with 1/n, > 0; with ``intercept = FALSE`` their
        root mean square.

    Returns
    -------
    float, array or Tensor
        Lambda, as the kind that came.

    Raises
    ------
    ArgumentError
        For strengths below zero, not finite or not real, and ``sd_y`` not above zero.

    Notes
    -----
    The same for other calls of glmnet, all with ``alpha = 0``:

    - ``standardize = TRUE``: every feature has its own lambda, the one above times the variance (with 1/n) of the
      feature.
    - ``family = gaussian()``, an object: y is not scaled, and lambda is glmnet's number.
    - ``"mgaussian"``: y is not scaled, but glmnet sums over the outputs: lambda is glmnet's number divided by their
      count.
    - ``"binomial"``, ``"multinomial"``, ``"poisson"``: lambda is glmnet's number, on the mean of the cross-entropy of
      one logit, of the softmax, and of the Poisson loss.
    - ``cv.glmnet``: each fold has the ``sd_y`` of its own training rows, and so another lambda.

    References
    ----------
    Friedman, Hastie and Tibshirani (2010), Journal of Statistical Software 33(1), and the glmnet vignette,
    "Appendix: comparison with other packages".

    Examples
    --------
    >>> from_glmnet(1.0, sd_y=4.0)
    0.25
    """
    return _checked("lambda_", lambda_) / _checked("sd_y", float(sd_y), positive=True)


def to_glmnet(lambda_: Value, *, sd_y: float) -> Value:
    r"""Convert lambda on half mean squared error to glmnet's: :math:`\lambda_\text{glmnet} = \lambda s_y`.

    The inverse of `from_glmnet`, with the same arguments and errors.

    Examples
    --------
    >>> to_glmnet(0.25, sd_y=4.0)
    1.0
    """
    return _checked("lambda_", lambda_) * _checked("sd_y", float(sd_y), positive=True)


def _ridge_factor(n: int, targets: int, loss: str) -> float:
    if loss not in ("mse", "half_mse"):
        raise ArgumentError(
            "loss",
            got=repr(loss),
            expected="'mse' or 'half_mse'",
            remedy="name the data loss lambda is added to",
        )
    return _count("n", n) * _count("targets", targets) * (0.5 if loss == "mse" else 1.0)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(name, got=repr(value), expected="an integer >= 1", remedy="pass how many there are")
    return int(value)


def _checked(name: str, value: Value, *, positive: bool = False, infinite: bool = False) -> Value:
    """Return ``value`` in floating point, or say why it is no strength."""
    if isinstance(value, Tensor):
        real = not (value.is_complex() or value.dtype == torch.bool)
        number = value if value.is_floating_point() or not real else value.to(torch.float64)
    elif isinstance(value, np.ndarray):
        real = value.dtype.kind in "iuf"
        number = value if value.dtype.kind == "f" or not real else value.astype(np.float64)
    else:
        real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        number = float(value) if real else value
    if real:
        fine = (number > 0) if positive else (number >= 0)  # false for NaN
        fine = fine if infinite else fine & (number != math.inf)
        if fine if isinstance(fine, bool) else bool(fine.all()):
            return number
    bound = "> 0" if positive else ">= 0"
    raise ArgumentError(
        name,
        got=f"{value!r:.80}",
        expected=f"real numbers {bound}" + ("" if infinite else ", finite"),
        remedy="pass a float, an array or a tensor of such numbers",
    )


def _inverse(value: Value, n: int) -> Value:
    """Return ``1 / (n * value)``, which is infinity at 0 and 0 at infinity."""
    if isinstance(value, Tensor):
        return 1.0 / (n * value)
    if isinstance(value, np.ndarray):
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(1.0 / (n * value))
    return 1.0 / (n * value) if n * value else math.inf
