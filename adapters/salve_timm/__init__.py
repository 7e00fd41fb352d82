"""SALVE's adapter for timm models."""

from salve_timm.adapter import TimmAdapter

__all__ = ["TimmAdapter"]
