"""Closed-form erasers: ways to obtain the U, V and c of a low-rank map of a site."""

from salve_plugin.control.erasers.ablation import (
    directional_ablation,
    inlp,
    safree,
)
from salve_plugin.control.erasers.fold import FoldedLatents, fold_latents, fold_posterior
from salve_plugin.control.erasers.joint_moments import Centre, JointMoments, oas_shrinkage
from salve_plugin.control.erasers.oblique import leace, splince
from salve_plugin.control.erasers.repair import PairMoments, repair
from salve_plugin.control.erasers.wiener import wiener, wieners

__all__ = [
    "Centre",
    "FoldedLatents",
    "JointMoments",
    "PairMoments",
    "directional_ablation",
    "fold_latents",
    "fold_posterior",
    "inlp",
    "leace",
    "oas_shrinkage",
    "repair",
    "safree",
    "splince",
    "wiener",
    "wieners",
]  # fmt: skip
