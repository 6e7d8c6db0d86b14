"""l2path: how strongly should the weights of my PyTorch model be shrunk?"""

from l2path.data import data_order, step_seed
from l2path.engine import Engine
from l2path.errors import (
    ArgumentError,
    BoundaryWarning,
    DivergenceWarning,
    EngineWarning,
    L2PathError,
    L2PathWarning,
    MissingExtraError,
    MixedDecayWarning,
    NoScoreError,
    ReductionWarning,
    StabilityWarning,
    UnusedParameterWarning,
)
from l2path.functional import Functional, functionalize, member_gradients
from l2path.optimizers import (
    Optimizer,
    adagrad,
    adam,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    clip_by_value,
    rmsprop,
    sgd,
)
from l2path.path import EpochEvent, Member, Metric, PathResult, batch_train
from l2path.penalty import expand_lambdas, l2_penalty, lambda_grid, lambda_table, weights_only
from l2path.ridge import RidgePath, ridge_path
from l2path.training import Metrics, TrainState, full_loss, init_state, make_train_step
from l2path.units import (
    from_glmnet,
    from_keras,
    from_sklearn_alpha,
    from_sklearn_C,
    from_weight_decay,
    to_glmnet,
    to_keras,
    to_sklearn_alpha,
    to_sklearn_C,
    to_weight_decay,
)

__version__ = "0.1.0"
