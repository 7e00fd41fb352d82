"""Folding: the dictionary of scaled rows and that of raw rows say the same."""

import torch
from torch.nn import functional

from salve_plugin.discover.learners.base import Start
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.training.folding import folded


def test_the_fold_multiplies_codes_by_the_scale_and_keeps_reconstructions() -> None:
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(7, 5, generator=random), dim=1)
    rule = BatchTopK(k=2)
    tensors = {
        name: value.detach()
        for name, value in rule.prepare(Start(atoms, atoms, 0.7, random)).items()
    }
    for name in ("encoder_weight", "encoder_bias", "decoder_bias"):
        tensors[name] = torch.randn(tensors[name].shape, generator=random)
    tensors = {name: value.double() for name, value in tensors.items()}
    tensors["threshold"] = torch.full((7,), 0.4, dtype=torch.float64)
    mean = torch.randn(5, generator=random).double()
    raw = folded(rule, tensors, mean, 7.3)
    scaled = torch.randn(20, 5, generator=random, dtype=torch.float64)
    code = rule.encode(tensors, scaled)
    assert 0 < int((code != 0).sum()) < code.numel()
    torch.testing.assert_close(rule.encode(raw, 7.3 * scaled + mean), 7.3 * code)
    torch.testing.assert_close(
        rule.decode(raw, 7.3 * code), 7.3 * rule.decode(tensors, code) + mean
    )
    torch.testing.assert_close(raw["atoms"], tensors["atoms"])
