"""Cross-validation: folds, seeds and lambdas in one run."""

from l2path.crossval.cross_validate import cross_validate
from l2path.crossval.folds import Fold
from l2path.crossval.load import load_result
from l2path.crossval.result import CVResult, Refit

__all__ = ["CVResult", "Fold", "Refit", "cross_validate", "load_result"]
