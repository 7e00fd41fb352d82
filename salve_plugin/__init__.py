"""Find, validate and permanently edit the features of a vision model.

The whole public API is listed here. Names load on first use (PEP 562), so that importing the
package costs no more than importing torch, and Captum, timm and the Hub client load only when
something needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salve_plugin.adapter import Adapter as Adapter
    from salve_plugin.adapter import attach as attach
    from salve_plugin.control.application import forget_ as forget_
    from salve_plugin.control.applied_edits import status as status
    from salve_plugin.control.assessment.assess import assess as assess
    from salve_plugin.control.assessment.assessment import Assessment as Assessment
    from salve_plugin.control.assessment.forgetting import Forgetting as Forgetting
    from salve_plugin.control.assessment.forgetting import Recovery as Recovery
    from salve_plugin.control.assessment.forgetting import forgetting as forgetting
    from salve_plugin.control.assessment.forgetting_table import (
        forgetting_table as forgetting_table,
    )
    from salve_plugin.control.assessment.outcomes import Budget as Budget
    from salve_plugin.control.assessment.outcomes import ClassOutcome as ClassOutcome
    from salve_plugin.control.assessment.outcomes import ConceptOutcome as ConceptOutcome
    from salve_plugin.control.assessment.outcomes import Control as Control
    from salve_plugin.control.assessment.outcomes import Effect as Effect
    from salve_plugin.control.assessment.outcomes import Evidence as Evidence
    from salve_plugin.control.assessment.outcomes import Ideal as Ideal
    from salve_plugin.control.assessment.outcomes import ParameterBudget as ParameterBudget
    from salve_plugin.control.assessment.outcomes import Prediction as Prediction
    from salve_plugin.control.assessment.probe import Probed as Probed
    from salve_plugin.control.assessment.reassess import Deviation as Deviation
    from salve_plugin.control.assessment.reassess import deviations as deviations
    from salve_plugin.control.assessment.reassess import reassess as reassess
    from salve_plugin.control.choosing.candidate import Candidate as Candidate
    from salve_plugin.control.choosing.candidate import Choice as Choice
    from salve_plugin.control.choosing.choose import choose as choose
    from salve_plugin.control.choosing.goals import EnhanceClass as EnhanceClass
    from salve_plugin.control.choosing.goals import MoveDecision as MoveDecision
    from salve_plugin.control.choosing.goals import RemoveConcept as RemoveConcept
    from salve_plugin.control.choosing.goals import RemoveShortcut as RemoveShortcut
    from salve_plugin.control.choosing.goals import SuppressClass as SuppressClass
    from salve_plugin.control.comparing.fragility import Fragility as Fragility
    from salve_plugin.control.comparing.fragility import SuccessWindow as SuccessWindow
    from salve_plugin.control.comparing.fragility import fragility as fragility
    from salve_plugin.control.comparing.learnt_scales import LearntScales as LearntScales
    from salve_plugin.control.comparing.learnt_scales import learn_scales as learn_scales
    from salve_plugin.control.comparing.matched import with_kl as with_kl
    from salve_plugin.control.comparing.multiples import at_multiple as at_multiple
    from salve_plugin.control.comparing.self_repair import SelfRepair as SelfRepair
    from salve_plugin.control.comparing.self_repair import self_repair as self_repair
    from salve_plugin.control.concepts.concept import Concept as Concept
    from salve_plugin.control.concepts.concept import ConceptLatent as ConceptLatent
    from salve_plugin.control.concepts.directions import control_vector as control_vector
    from salve_plugin.control.concepts.directions import raptor_direction as raptor_direction
    from salve_plugin.control.concepts.evidence import ConceptEvidence as ConceptEvidence
    from salve_plugin.control.concepts.finding import direction_concept as direction_concept
    from salve_plugin.control.concepts.finding import find_concept as find_concept
    from salve_plugin.control.concepts.finding import latent_concept as latent_concept
    from salve_plugin.control.crit_search import SearchedCrit as SearchedCrit
    from salve_plugin.control.crit_search import search_alpha_crit as search_alpha_crit
    from salve_plugin.control.critical import AlphaCrit as AlphaCrit
    from salve_plugin.control.critical import alpha_crit as alpha_crit
    from salve_plugin.control.critical import alpha_crits as alpha_crits
    from salve_plugin.control.edit import Edit as Edit
    from salve_plugin.control.erasing import erase as erase
    from salve_plugin.control.erasing_through import erase_through as erase_through
    from salve_plugin.control.evaluate import Evaluation as Evaluation
    from salve_plugin.control.evaluate import evaluate as evaluate
    from salve_plugin.control.making import edit_at as edit_at
    from salve_plugin.control.making import enhance as enhance
    from salve_plugin.control.making import suppress as suppress
    from salve_plugin.control.matching import BaseMatch as BaseMatch
    from salve_plugin.control.multi_label import MultiLabelEvaluation as MultiLabelEvaluation
    from salve_plugin.control.multi_label import evaluate_multi_label as evaluate_multi_label
    from salve_plugin.control.operators import Gate as Gate
    from salve_plugin.control.operators import LowRankMap as LowRankMap
    from salve_plugin.control.operators import LowRankUpdate as LowRankUpdate
    from salve_plugin.control.operators import joint_map as joint_map
    from salve_plugin.control.provenance import Exactness as Exactness
    from salve_plugin.control.provenance import Provenance as Provenance
    from salve_plugin.control.recipe import Recipe as Recipe
    from salve_plugin.control.strength import critical_strength as critical_strength
    from salve_plugin.control.targets import Target as Target
    from salve_plugin.control.writers.coar import ComponentEdit as ComponentEdit
    from salve_plugin.control.writers.coar import coar as coar
    from salve_plugin.control.writers.mask import mask as mask
    from salve_plugin.control.writers.memit import memit as memit
    from salve_plugin.control.writers.prune import prune as prune
    from salve_plugin.control.writers.refit_head import refit_head as refit_head
    from salve_plugin.control.writers.rome import class_association as class_association
    from salve_plugin.control.writers.rome import rome as rome
    from salve_plugin.control.writers.rome_value import rome_value as rome_value
    from salve_plugin.control.writers.zeroing import zero_row as zero_row
    from salve_plugin.discover.dictionary import Dictionary as Dictionary
    from salve_plugin.discover.features import Features as Features
    from salve_plugin.discover.features import profile as profile
    from salve_plugin.discover.learners import learners as learners
    from salve_plugin.discover.learners import register as register
    from salve_plugin.discover.learners.base import Learner as Learner
    from salve_plugin.discover.learners.topk import TopK as TopK
    from salve_plugin.discover.recording.activations import Activations as Activations
    from salve_plugin.discover.recording.stream import record as record
    from salve_plugin.discover.saelens import load_saelens as load_saelens
    from salve_plugin.discover.saelens import save_saelens as save_saelens
    from salve_plugin.discover.sweep import Trial as Trial
    from salve_plugin.discover.sweep import sweep as sweep
    from salve_plugin.discover.training.fit import fit as fit
    from salve_plugin.discover.training.head_gradient import head_gradient as head_gradient
    from salve_plugin.discover.training.progress import Progress as Progress
    from salve_plugin.discover.training.run import Run as Run
    from salve_plugin.errors import SalveError as SalveError
    from salve_plugin.hooks import HookedModel as HookedModel
    from salve_plugin.report.atlas import atlas as atlas
    from salve_plugin.report.card import LatentCard as LatentCard
    from salve_plugin.report.card import latent_card as latent_card
    from salve_plugin.report.notebook import atlas_widget as atlas_widget
    from salve_plugin.share.artifact import EditArtifact as EditArtifact
    from salve_plugin.share.audit import Audit as Audit
    from salve_plugin.share.audited_tensor import AuditedTensor as AuditedTensor
    from salve_plugin.share.bundle import EditBundle as EditBundle
    from salve_plugin.share.composition import ComposedTensor as ComposedTensor
    from salve_plugin.share.composition import Composition as Composition
    from salve_plugin.share.composition import MemberOverlap as MemberOverlap
    from salve_plugin.share.difference import Difference as Difference
    from salve_plugin.share.difference import FieldDifference as FieldDifference
    from salve_plugin.share.difference import TensorDifference as TensorDifference
    from salve_plugin.share.lora import load_lora as load_lora
    from salve_plugin.share.lora import save_lora as save_lora
    from salve_plugin.share.merged import push_edited_model as push_edited_model
    from salve_plugin.share.merged import save_edited_model as save_edited_model
    from salve_plugin.site import Site as Site
    from salve_plugin.store.digest import state_digest as state_digest
    from salve_plugin.store.hub.address import Origin as Origin
    from salve_plugin.store.hub.push import How as How
    from salve_plugin.store.hub.push import Pushed as Pushed
    from salve_plugin.store.reference import Reference as Reference
    from salve_plugin.store.source import Where as Where
    from salve_plugin.validate.all_maps import grad_fam_maps as grad_fam_maps
    from salve_plugin.validate.class_effects import ClassEffects as ClassEffects
    from salve_plugin.validate.class_effects import class_effects as class_effects
    from salve_plugin.validate.code_map import LayerCodeMap as LayerCodeMap
    from salve_plugin.validate.contribution import Contribution as Contribution
    from salve_plugin.validate.contribution import contribution as contribution
    from salve_plugin.validate.encoder import encoder as encoder
    from salve_plugin.validate.evidence.blurring import MapCheck as MapCheck
    from salve_plugin.validate.evidence.blurring import map_check as map_check
    from salve_plugin.validate.evidence.class_tree import ClassTree as ClassTree
    from salve_plugin.validate.evidence.class_tree import class_tree as class_tree
    from salve_plugin.validate.evidence.collect import evidence as evidence
    from salve_plugin.validate.evidence.concept_scores import ConceptScores as ConceptScores
    from salve_plugin.validate.evidence.concept_scores import tcav as tcav
    from salve_plugin.validate.evidence.concept_sets import SetProfile as SetProfile
    from salve_plugin.validate.evidence.differing import LatentDifference as LatentDifference
    from salve_plugin.validate.evidence.differing import compare_recordings as compare_recordings
    from salve_plugin.validate.evidence.dissection import SegmentProfile as SegmentProfile
    from salve_plugin.validate.evidence.flip_shares import FlipShares as FlipShares
    from salve_plugin.validate.evidence.flipping import Flip as Flip
    from salve_plugin.validate.evidence.flipping import Flips as Flips
    from salve_plugin.validate.evidence.flipping import fewest_to_flip as fewest_to_flip
    from salve_plugin.validate.evidence.latent_evidence import LatentEvidence as LatentEvidence
    from salve_plugin.validate.evidence.map_falls import MapFalls as MapFalls
    from salve_plugin.validate.evidence.predicted import PredictedEffect as PredictedEffect
    from salve_plugin.validate.evidence.predicted import predicted_effect as predicted_effect
    from salve_plugin.validate.evidence.unfamiliar import Unfamiliarity as Unfamiliarity
    from salve_plugin.validate.evidence.unfamiliar import unfamiliarity as unfamiliarity
    from salve_plugin.validate.grad_fam import GradFAM as GradFAM
    from salve_plugin.validate.grad_fam import LayerGradFam as LayerGradFam
    from salve_plugin.validate.heat_maps import grad_fam_pictures as grad_fam_pictures
    from salve_plugin.validate.maximization import Maximization as Maximization
    from salve_plugin.validate.maximization import maximize as maximize
    from salve_plugin.validate.measures import Measures as Measures
    from salve_plugin.validate.pictures import overlay as overlay
    from salve_plugin.validate.quality import Quality as Quality
    from salve_plugin.validate.quality import quality as quality
    from salve_plugin.validate.refinement import product_map as product_map

_HOME = {
    "Adapter": "adapter",
    "attach": "adapter",
    "Activations": "discover.recording.activations",
    "record": "discover.recording.stream",
    "Dictionary": "discover.dictionary",
    "fit": "discover.training.fit",
    "head_gradient": "discover.training.head_gradient",
    "learners": "discover.learners",
    "Learner": "discover.learners.base",
    "register": "discover.learners",
    "TopK": "discover.learners.topk",
    "Progress": "discover.training.progress",
    "Run": "discover.training.run",
    "load_saelens": "discover.saelens",
    "save_saelens": "discover.saelens",
    "sweep": "discover.sweep",
    "Trial": "discover.sweep",
    "Features": "discover.features",
    "profile": "discover.features",
    "encoder": "validate.encoder",
    "LayerGradFam": "validate.grad_fam",
    "GradFAM": "validate.grad_fam",
    "LayerCodeMap": "validate.code_map",
    "grad_fam_maps": "validate.all_maps",
    "product_map": "validate.refinement",
    "class_effects": "validate.class_effects",
    "ClassEffects": "validate.class_effects",
    "contribution": "validate.contribution",
    "Contribution": "validate.contribution",
    "Maximization": "validate.maximization",
    "maximize": "validate.maximization",
    "overlay": "validate.pictures",
    "grad_fam_pictures": "validate.heat_maps",
    "Quality": "validate.quality",
    "quality": "validate.quality",
    "Measures": "validate.measures",
    "evidence": "validate.evidence.collect",
    "ConceptScores": "validate.evidence.concept_scores",
    "tcav": "validate.evidence.concept_scores",
    "map_check": "validate.evidence.blurring",
    "MapCheck": "validate.evidence.blurring",
    "fewest_to_flip": "validate.evidence.flipping",
    "Flips": "validate.evidence.flipping",
    "Flip": "validate.evidence.flipping",
    "compare_recordings": "validate.evidence.differing",
    "LatentDifference": "validate.evidence.differing",
    "unfamiliarity": "validate.evidence.unfamiliar",
    "Unfamiliarity": "validate.evidence.unfamiliar",
    "LatentEvidence": "validate.evidence.latent_evidence",
    "class_tree": "validate.evidence.class_tree",
    "ClassTree": "validate.evidence.class_tree",
    "FlipShares": "validate.evidence.flip_shares",
    "MapFalls": "validate.evidence.map_falls",
    "SegmentProfile": "validate.evidence.dissection",
    "SetProfile": "validate.evidence.concept_sets",
    "predicted_effect": "validate.evidence.predicted",
    "PredictedEffect": "validate.evidence.predicted",
    "Edit": "control.edit",
    "Recipe": "control.recipe",
    "suppress": "control.making",
    "enhance": "control.making",
    "edit_at": "control.making",
    "Gate": "control.operators",
    "LowRankMap": "control.operators",
    "LowRankUpdate": "control.operators",
    "joint_map": "control.operators",
    "mask": "control.writers.mask",
    "zero_row": "control.writers.zeroing",
    "rome": "control.writers.rome",
    "class_association": "control.writers.rome",
    "rome_value": "control.writers.rome_value",
    "memit": "control.writers.memit",
    "coar": "control.writers.coar",
    "ComponentEdit": "control.writers.coar",
    "prune": "control.writers.prune",
    "refit_head": "control.writers.refit_head",
    "Provenance": "control.provenance",
    "Exactness": "control.provenance",
    "Target": "control.targets",
    "BaseMatch": "control.matching",
    "status": "control.applied_edits",
    "forget_": "control.application",
    "Concept": "control.concepts.concept",
    "ConceptLatent": "control.concepts.concept",
    "ConceptEvidence": "control.concepts.evidence",
    "find_concept": "control.concepts.finding",
    "latent_concept": "control.concepts.finding",
    "direction_concept": "control.concepts.finding",
    "control_vector": "control.concepts.directions",
    "raptor_direction": "control.concepts.directions",
    "erase": "control.erasing",
    "erase_through": "control.erasing_through",
    "at_multiple": "control.comparing.multiples",
    "with_kl": "control.comparing.matched",
    "fragility": "control.comparing.fragility",
    "Fragility": "control.comparing.fragility",
    "SuccessWindow": "control.comparing.fragility",
    "self_repair": "control.comparing.self_repair",
    "SelfRepair": "control.comparing.self_repair",
    "learn_scales": "control.comparing.learnt_scales",
    "LearntScales": "control.comparing.learnt_scales",
    "AlphaCrit": "control.critical",
    "alpha_crit": "control.critical",
    "alpha_crits": "control.critical",
    "search_alpha_crit": "control.crit_search",
    "SearchedCrit": "control.crit_search",
    "critical_strength": "control.strength",
    "Candidate": "control.choosing.candidate",
    "Choice": "control.choosing.candidate",
    "choose": "control.choosing.choose",
    "SuppressClass": "control.choosing.goals",
    "EnhanceClass": "control.choosing.goals",
    "MoveDecision": "control.choosing.goals",
    "RemoveConcept": "control.choosing.goals",
    "RemoveShortcut": "control.choosing.goals",
    "Evaluation": "control.evaluate",
    "evaluate": "control.evaluate",
    "evaluate_multi_label": "control.multi_label",
    "MultiLabelEvaluation": "control.multi_label",
    "assess": "control.assessment.assess",
    "Assessment": "control.assessment.assessment",
    "ClassOutcome": "control.assessment.outcomes",
    "ConceptOutcome": "control.assessment.outcomes",
    "Control": "control.assessment.outcomes",
    "Effect": "control.assessment.outcomes",
    "Ideal": "control.assessment.outcomes",
    "Budget": "control.assessment.outcomes",
    "ParameterBudget": "control.assessment.outcomes",
    "Prediction": "control.assessment.outcomes",
    "Evidence": "control.assessment.outcomes",
    "reassess": "control.assessment.reassess",
    "deviations": "control.assessment.reassess",
    "Deviation": "control.assessment.reassess",
    "forgetting": "control.assessment.forgetting",
    "Forgetting": "control.assessment.forgetting",
    "Recovery": "control.assessment.forgetting",
    "forgetting_table": "control.assessment.forgetting_table",
    "Probed": "control.assessment.probe",
    "atlas": "report.atlas",
    "atlas_widget": "report.notebook",
    "latent_card": "report.card",
    "LatentCard": "report.card",
    "EditArtifact": "share.artifact",
    "EditBundle": "share.bundle",
    "Composition": "share.composition",
    "ComposedTensor": "share.composition",
    "MemberOverlap": "share.composition",
    "load_lora": "share.lora",
    "save_lora": "share.lora",
    "Audit": "share.audit",
    "AuditedTensor": "share.audited_tensor",
    "Difference": "share.difference",
    "FieldDifference": "share.difference",
    "TensorDifference": "share.difference",
    "push_edited_model": "share.merged",
    "save_edited_model": "share.merged",
    "Where": "store.source",
    "Origin": "store.hub.address",
    "How": "store.hub.push",
    "Pushed": "store.hub.push",
    "Reference": "store.reference",
    "state_digest": "store.digest",
    "HookedModel": "hooks",
    "Site": "site",
    "SalveError": "errors",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("salve-plugin")
    if name not in _HOME:
        raise AttributeError(f"module 'salve_plugin' has no attribute '{name}'")
    value = getattr(import_module(f"salve_plugin.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
