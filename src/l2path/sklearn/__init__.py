"""Estimators of scikit-learn around any module; need scikit-learn, the extra ``sklearn``."""

from l2path.errors import MissingExtraError

try:
    from sklearn.utils.validation import validate_data as _needed  # noqa: F401 - since scikit-learn 1.6
except ImportError as error:
    raise MissingExtraError(
        "l2path.sklearn needs scikit-learn 1.6 or newer. Remedy: pip install 'l2path[sklearn]'"
    ) from error

from l2path.sklearn.classifier import L2PathClassifier
from l2path.sklearn.regressor import L2PathRegressor

__all__ = ["L2PathClassifier", "L2PathRegressor"]
