"""Plots of a result; they need matplotlib, the extra ``plot``."""

from l2path.path.figures.overview import draw
from l2path.path.figures.view import View, path_view, presentable

__all__ = ["View", "draw", "path_view", "presentable"]
