"""Fusion: one model from several that were fine-tuned from the same base."""

from codiemb.fusion.deltas import Granularity, LayerDelta, Method
from codiemb.fusion.fusing import FusionReport, compare_deltas, fuse

__all__ = ["FusionReport", "Granularity", "LayerDelta", "Method", "compare_deltas", "fuse"]
