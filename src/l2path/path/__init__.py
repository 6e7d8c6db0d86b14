"""``batch_train`` and what it returns."""

from l2path.path.batch import batch_train
from l2path.path.check import CheckReport, check
from l2path.path.chunks import EpochEvent
from l2path.path.evaluation import Metric
from l2path.path.halving import SuccessiveHalving
from l2path.path.members import Members
from l2path.path.outcome import Member, Uncertainty
from l2path.path.result import PathResult
from l2path.path.stopping import EarlyStopping

__all__ = [
    "CheckReport",
    "EarlyStopping",
    "EpochEvent",
    "Member",
    "Members",
    "Metric",
    "PathResult",
    "SuccessiveHalving",
    "Uncertainty",
    "batch_train",
    "check",
]
