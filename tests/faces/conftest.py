"""One small study of real digits, whose classes have names that nobody would want as HTML."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import salve_plugin as salve
from salve_plugin.demo import digits

RESNET = Path(__file__).parents[1] / "fixtures" / "digits_resnet.safetensors"
NAMES = ("<script>alert('0')</script>", "one & only", *digits.CLASSES[2:])


@pytest.fixture(scope="session")
def study(digits_test: digits.Split) -> SimpleNamespace:
    """Everything that a study of 120 digits makes, by name."""
    model = digits.load("resnet", RESNET)
    hooked = salve.attach(model)
    few = digits.Split(digits_test.images[:120], digits_test.labels[:120])
    acts = salve.record(hooked, few.batches(), progress=False, classes=NAMES)
    (trial,) = salve.sweep(acts, "l1", {"seed": [0]}, n_latents=16, steps=40, learning_rate=0.01)
    dictionary = trial.dictionary
    features = salve.profile(dictionary, acts)
    goal = salve.SuppressClass(3, by="latents", tries=1)
    choice = salve.choose(hooked, goal, acts, dictionary=dictionary, features=features)
    edit, other = choice.edit, salve.suppress(hooked, dictionary, latent=0, strength=1.0, rows=(5,))
    crit = salve.alpha_crit(hooked, edit, acts, target="flip")
    has = few.images.flatten(1).mean(1) > few.images.mean()
    concept = salve.find_concept(acts, has, name="bright", dictionary=dictionary)
    assessment = salve.assess(hooked, edit, acts, target=3)
    parts: dict[str, Any] = {"dictionary": dictionary, "alpha_crit": crit, "assessment": assessment}
    artifact = salve.EditArtifact.of(hooked, edit, **parts)
    second = salve.EditArtifact.of(hooked, other, dictionary=dictionary, embed_dictionary=True)
    return SimpleNamespace(
        hooked=hooked, acts=acts, trial=trial, dictionary=dictionary, features=features,
        choice=choice, edit=edit, crit=crit, concept=concept, assessment=assessment,
        artifact=artifact, learners=salve.learners(),
        evaluation=salve.evaluate(model, few.batches()),
        decisions=salve.evaluate_multi_label(
            model, [(few.images, torch.nn.functional.one_hot(few.labels, 10))]
        ),
        quality=salve.quality(dictionary, acts, hooked=hooked, controls=("random",)),
        maximization=salve.maximize(hooked, dictionary, 3, steps=4),
        searched=salve.search_alpha_crit(hooked, edit, few.batches(), steps=2, halvings=1),
        difference=artifact.diff(second),
        bundle=salve.EditBundle.of(hooked, {"three": artifact, "five": second}),
        audit=artifact.audit(None, edit.edited(model)),
        match=edit.match(model),
        map=salve.erase(hooked, concept),
        update=salve.refit_head(hooked, acts),
        goals=(
            salve.EnhanceClass(3), salve.MoveDecision(3, 5), salve.RemoveConcept(concept),
            salve.RemoveShortcut(concept),
        ),
        windows=salve.fragility(hooked, {"edit": edit}, acts, label=3, multiples=(1.0, 2.0)),
        run=salve.Run(), learner=salve.TopK(),
        method=salve.LayerGradFam.of(hooked, dictionary),
        by_concept=salve.assess(hooked, edit, acts, has=has),
        codes=salve.LayerCodeMap.of(hooked, dictionary),
        effects=salve.class_effects(hooked, dictionary, [*few.batches()], candidates=1),
        contribution=salve.contribution(3),
        evidence=salve.evidence(hooked, dictionary, acts, permutations=9),
        tree=salve.class_tree(hooked),
        card=salve.latent_card(hooked, dictionary, acts, 3, images=few.loader().dataset, top=2),
        predicted=salve.predicted_effect(hooked, dictionary, acts, latents=[0]),
        flips=salve.fewest_to_flip(hooked, dictionary, few.images[:4]),
        differing=salve.compare_recordings(dictionary, acts, acts, permutations=9),
        unfamiliarity=salve.unfamiliarity(dictionary, acts, acts),
        checked=salve.map_check(hooked, dictionary, few.images[:4], 3, regions=2),
    )  # fmt: skip
