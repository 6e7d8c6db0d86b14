"""The units of glmnet: what R's glmnet gave, recorded, and glmnet's own core in Python, refitted here.

``tests/golden/glmnet.json`` holds numbers of R's glmnet, which ``tests/golden/glmnet.R`` made. The package glmstar, of
glmnet's authors and imported as ``glmnet``, runs the same C++ core without R.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from l2path.scores import best_index, fold_summary, one_se_index
from tests.helpers import assert_trees_close

datasets = pytest.importorskip("sklearn.datasets")
model_selection = pytest.importorskip("sklearn.model_selection")

Floats = npt.NDArray[np.float64]
EXACT, TRAINED = 1e-9, 1e-7  # agreement of ridge_path, and of gradient descent, relative to the largest entry
SOURCES = ("recorded from R", "refitted")
FOLDS = np.arange(103) % 5
pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")

# The estimators of glmstar that fit the cases of glmnet.R again.
REFITS: dict[str, tuple[str, dict[str, bool]]] = {
    "gaussian": ("GaussNet", {}),
    "gaussian_standardized": ("GaussNet", {"standardize": True}),
    "gaussian_no_intercept": ("GaussNet", {"fit_intercept": False}),
    "mgaussian": ("MultiGaussNet", {}),
    "binomial": ("LogNet", {}),
    "multinomial": ("MultiClassNet", {}),
    "poisson": ("FishNet", {}),
}
EVERY_REFIT = [(name, source) for name in REFITS for source in SOURCES]


class Fits(NamedTuple):
    """Coefficients ``[L, D]`` or ``[L, D, T]`` and intercepts ``[L]`` or ``[L, T]``."""

    coef: Floats
    intercept: Floats


class Validation(NamedTuple):
    """What cv.glmnet gives; cvm and cvsd are ``[L]``."""

    cvm: Floats
    cvsd: Floats
    lambda_min: float
    lambda_1se: float


@cache
def golden() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "golden" / "glmnet.json").read_text(encoding="utf-8")
    numbers: dict[str, Any] = json.loads(text)
    return numbers


@cache
def data() -> tuple[Floats, dict[str, Floats]]:
    """Return inputs ``[103, 7]`` and the targets of each family, as glmnet.R computes them."""
    bunch = datasets.load_diabetes(scaled=False)
    raw, y = bunch.data[:103], bunch.target[:103]
    X = (raw[:, [0, 1, 2, 3, 6, 8, 9]] - [50, 1.5, 26, 95, 50, 4.6, 91]) / [10, 1, 4, 10, 10, 0.5, 10]
    targets = {
        "gaussian": y,
        "poisson": y,
        "mgaussian": np.stack([y, 10 * raw[:, 4]], axis=1),
        "binomial": (y > 140).astype(np.float64),
        "multinomial": (y > 90).astype(np.int64) + (y > 180),
    }
    return X, targets


def family(name: str) -> str:
    return name.removeprefix("cv_").split("_")[0]


def lambdas_of(name: str) -> Floats:
    return np.array(golden()[name]["lambdas"])


def glmnet_fit(name: str, lambdas: Floats) -> Any:  # an estimator of a package without types
    glmnet = pytest.importorskip("glmnet")
    control = pytest.importorskip("glmnet.paths.fastnet").FastNetControl(thresh=1e-20, maxit=10**7)
    estimator, options = REFITS[name.removeprefix("cv_")]
    options = {"standardize": False} | options
    X, targets = data()
    fit = getattr(glmnet, estimator)(alpha=0.0, lambda_values=lambdas, control=control, **options)
    return fit.fit(X, targets[family(name)])


def theirs(name: str, source: str) -> Fits:
    if source == "refitted":
        fit = glmnet_fit(name, lambdas_of(name))
        return Fits(fit.coefs_, fit.intercepts_)
    coef, intercept = (np.array(golden()[name][key]) for key in ("coef", "intercept"))
    return Fits(coef, intercept) if coef.ndim == 2 else Fits(coef.transpose(1, 2, 0), intercept.T)


def their_choice(name: str, source: str) -> Validation:
    if source == "recorded from R":
        numbers = golden()[name]
        return Validation(
            np.array(numbers["cvm"]), np.array(numbers["cvsd"]), numbers["lambda_min"], numbers["lambda_1se"]
        )
    X, targets = data()
    fit = glmnet_fit(name, lambdas_of(name))
    split = model_selection.PredefinedSplit(FOLDS)
    _, path = fit.cross_validation_path(X, targets[family(name)], cv=split)
    score = {"gaussian": "Mean Squared Error", "binomial": "Binomial Deviance"}[family(name)]
    table = path.scores
    return Validation(
        table[score].to_numpy(),
        table[f"SD({score})"].to_numpy(),
        float(path.index_best[score]),
        float(path.index_1se[score]),
    )


def least_squares(name: str, scale: float = 1.0) -> Fits:
    """Return the exact minimisers at glmnet's lambdas, converted, times ``scale``."""
    X, targets = data()
    y = targets[family(name)]
    given = lambdas_of(name)
    if name == "gaussian":
        on_half_mse = l2path.from_glmnet(given, sd_y=y.std())
    elif name == "gaussian_standardized":  # glmnet's default: X scaled, here a lambda for each feature
        on_half_mse = l2path.from_glmnet(given, sd_y=y.std())[:, None] * X.var(axis=0)
    elif name == "gaussian_no_intercept":  # y scaled by its root mean square
        on_half_mse = l2path.from_glmnet(given, sd_y=float(np.sqrt(np.mean(y**2))))
    elif name == "gaussian_object":  # family = gaussian(), not "gaussian": y not scaled
        on_half_mse = given
    else:  # mgaussian: not scaled either; glmnet sums over the outputs, where the mean here runs over them
        on_half_mse = given / y.shape[1]
    path = l2path.ridge_path(X, y, 2 * scale * on_half_mse, fit_intercept=name != "gaussian_no_intercept")
    return Fits(path.coef.numpy(), path.intercept.numpy())


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(outputs, targets)


def zeros(outputs: int = 1) -> nn.Module:
    module = nn.Linear(7, outputs).double()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


@cache
def trained(name: str, scale: float = 1.0) -> Fits:
    """Return what gradient descent finds at glmnet's lambdas, converted, times ``scale``."""
    X, targets = data()
    y = targets[name]
    lambdas = l2path.from_glmnet(lambdas_of(name), sd_y=y.std()) if name == "gaussian" else lambdas_of(name)
    losses: dict[str, tuple[Callable[..., Tensor], float]] = {
        "gaussian": (half_mse, 0.06),
        "binomial": (F.binary_cross_entropy_with_logits, 0.6),
        "multinomial": (F.cross_entropy, 0.6),
        "poisson": (F.poisson_nll_loss, 2e-3),  # the curvature is the mean of y
    }
    loss, lr = losses[name]
    classes = name == "multinomial"
    result = l2path.batch_train(
        zeros(3 if classes else 1), (X, y if classes else y[:, None]), loss_fn=loss, epochs=250,
        optimizer=l2path.sgd(lr=lr, momentum=0.85), lambdas=l2path.weights_only(scale * lambdas),
    )  # fmt: skip
    weight, bias = result.params["weight"].numpy(), result.params["bias"].numpy()  # [L, T, D], [L, T]
    return Fits(weight.transpose(0, 2, 1), bias) if classes else Fits(weight[:, 0], bias[:, 0])


def test_the_data_are_those_that_r_saw() -> None:
    X, targets = data()
    assert_trees_close(X.sum(axis=0), np.array(golden()["check"]["x"]), 1e-12)
    assert targets["gaussian"].sum() == golden()["check"]["y"]
    assert golden()["made_with"] == {"R": "4.2.2", "glmnet": "4.1-6"}


@pytest.mark.parametrize(
    ("name", "source"),
    [case for case in EVERY_REFIT if "gaussian" in case[0]] + [("gaussian_object", "recorded from R")],
)
def test_ridge_path_is_glmnet(name: str, source: str) -> None:
    assert_trees_close(least_squares(name), theirs(name, source), EXACT)


@pytest.mark.parametrize(
    ("name", "source"), [case for case in EVERY_REFIT if case[0] in {"gaussian", "binomial", "multinomial", "poisson"}]
)
def test_training_arrives_at_glmnet(name: str, source: str) -> None:
    assert_trees_close(trained(name), theirs(name, source), TRAINED)


def test_to_glmnet_is_a_refit_at_our_lambdas() -> None:
    X, targets = data()
    y = targets["gaussian"]
    ours = np.array([5.0, 0.3, 0.02])
    fit = glmnet_fit("gaussian", l2path.to_glmnet(ours, sd_y=y.std()))
    path = l2path.ridge_path(X, y, 2 * ours)
    assert_trees_close(Fits(path.coef.numpy(), path.intercept.numpy()), Fits(fit.coefs_, fit.intercepts_), EXACT)


def test_the_comparisons_can_fail() -> None:
    _, targets = data()
    y = targets["gaussian"]
    # Without the half, without the scale of y, and with 1 / (n - 1) in it.
    for wrong in (0.5, 2.0, y.std(), y.std() / y.std(ddof=1)):
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(least_squares("gaussian", wrong), theirs("gaussian", "recorded from R"), 1e-4)
    for wrong in (0.999, 2.0):
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(trained("binomial", wrong), theirs("binomial", "recorded from R"), 1e-5)


def fold_scores(name: str, sd_of_all_rows: bool = False) -> Floats:
    """Return held-out mean squared errors ``[F, L]``, with each fold's own standard deviation of y."""
    X, targets = data()
    y = targets["gaussian"]
    scores = []
    for fold in range(5):
        train, test = np.not_equal(FOLDS, fold), np.equal(FOLDS, fold)
        sd = y.std() if sd_of_all_rows else y[train].std()
        path = l2path.ridge_path(X[train], y[train], 2 * l2path.from_glmnet(lambdas_of(name), sd_y=sd))
        scores.append(((path.predict(X[test]).numpy() - y[test]) ** 2).mean(axis=1))
    return np.stack(scores)


@pytest.mark.parametrize("source", SOURCES)
def test_the_choice_is_that_of_cv_glmnet(source: str) -> None:
    # A lambda of glmnet is another lambda here in each fold, as the standard deviation of y is.
    lambdas, expected = lambdas_of("cv_gaussian"), their_choice("cv_gaussian", source)
    sizes = np.bincount(FOLDS).astype(np.float64)
    cvm, cvsd = fold_summary(fold_scores("cv_gaussian"), sizes)
    assert_trees_close([cvm, cvsd], [expected.cvm, expected.cvsd], EXACT)
    best = best_index(cvm, lambdas)
    strongest = one_se_index(cvm, cvsd, lambdas, best)
    assert (lambdas[best], lambdas[strongest]) == (expected.lambda_min, expected.lambda_1se)
    assert 0 < strongest < best < len(lambdas) - 1

    wrong, _ = fold_summary(fold_scores("cv_gaussian", sd_of_all_rows=True), sizes)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(wrong, expected.cvm, 1e-4)


@cache
def cross_validated(name: str) -> l2path.CVResult:
    X, targets = data()
    gaussian = family(name) == "gaussian"
    optimizer = l2path.sgd(lr=0.06, momentum=0.85) if gaussian else l2path.sgd(lr=0.6, momentum=0.8)
    return l2path.cross_validate(
        zeros(), (X, targets[family(name)][:, None]), folds=FOLDS,
        loss_fn=half_mse if gaussian else F.binary_cross_entropy_with_logits, optimizer=optimizer,
        lambdas=l2path.weights_only(lambdas_of(name)), epochs=250 if gaussian else 160,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "source"),
    [("cv_gaussian_object", "recorded from R"), ("cv_binomial", "recorded from R"), ("cv_binomial", "refitted")],
)
def test_cross_validate_is_cv_glmnet(name: str, source: str) -> None:
    # Families whose lambda is the same number in all folds. Mean squared error and deviance are twice these losses.
    cv, expected = cross_validated(name), their_choice(name, source)
    assert_trees_close([2 * cv.cvm, 2 * cv.cvsd], [expected.cvm, expected.cvsd], TRAINED)
    assert cv.lambda_min == pytest.approx(expected.lambda_min, rel=1e-12)
    assert cv.lambda_1se == pytest.approx(expected.lambda_1se, rel=1e-12)
    assert 0 < cv.index_1se < cv.index_min < 12
