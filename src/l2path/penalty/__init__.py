"""Lambda specs, the L2 penalty and grids."""

from l2path.penalty.axis import LambdaAxis, lambda_axis, strengths_with_axis
from l2path.penalty.names import Names, describe
from l2path.penalty.specs import WeightsOnly, expand_lambdas, weights_only
from l2path.penalty.table import LambdaRow, LambdaTable, lambda_table
from l2path.penalty.value import check_anchor, is_expanded, l2_penalty, lambda_grid, penalty_and_gradient

__all__ = [
    "LambdaAxis",
    "LambdaRow",
    "LambdaTable",
    "Names",
    "WeightsOnly",
    "check_anchor",
    "describe",
    "expand_lambdas",
    "is_expanded",
    "l2_penalty",
    "lambda_axis",
    "lambda_grid",
    "lambda_table",
    "penalty_and_gradient",
    "strengths_with_axis",
    "weights_only",
]
