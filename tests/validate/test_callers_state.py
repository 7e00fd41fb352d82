"""What a caller has set for all of torch is neither changed nor decides over results."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import salve_plugin as salve
from salve_plugin.errors import InputError

Call = Callable[[Any], object]


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """A small network, two recordings of it, and a dictionary of each site."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=4).eval()
        images = torch.randn(40, 3, 32, 32)
    hooked, labels = salve.attach(model), torch.arange(40) % 4
    made = SimpleNamespace(
        hooked=hooked, images=images, site=hooked.attribution_site,
        data=[(image, int(label)) for image, label in zip(images, labels, strict=True)],
        masks=[torch.arange(32).outer(torch.ones(32).long()) // 8 % 2 for _ in images],
    )  # fmt: skip
    for name, site in (("head", "unembed.hook_in"), ("hidden", made.site.name)):
        acts = salve.record(hooked, [(images, labels)], site, progress=False)
        run = salve.Run(progress=False)
        setattr(made, f"{name}_acts", acts)
        setattr(made, name, salve.fit(acts, "topk", n_latents=8, k=2, steps=5, run=run))
    return made


def _shown(p: Any) -> object:
    sets = {"some": p.images[:4], "others": p.images[4:8]}
    return salve.evidence(
        p.hooked, p.head, p.head_acts, images=p.data, masks=p.masks, concepts=sets, permutations=5
    )


def _tcav(p: Any) -> object:
    args = ({"some": p.images[:4]}, p.images[4:], p.images[:6])
    return salve.tcav(p.hooked, p.site, *args, target=1, sets=3)


def _atlas(p: Any) -> object:
    with TemporaryDirectory() as folder:
        salve.atlas(p.hooked, p.head, p.head_acts, f"{folder}/atlas", images=p.data, maximized=1)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return SimpleNamespace(
            **{str(path.relative_to(folder)): path.read_bytes() for path in files}
        )


def _choose(p: Any) -> object:
    goal = salve.SuppressClass(1)
    choice = salve.choose(p.hooked, goal, p.head_acts, dictionary=p.head)
    return SimpleNamespace(choice=choice.to_json())


CALLS: dict[str, Call] = {
    "atlas": _atlas,
    "choose": _choose,
    "compare_recordings": lambda p: salve.compare_recordings(
        p.head, p.head_acts, p.head_acts, permutations=5
    ),
    "evidence": _shown,
    "latent_card": lambda p: salve.latent_card(
        p.hooked, p.head, p.head_acts, 1, images=p.data
    ).as_table(),
    "map_check": lambda p: salve.map_check(p.hooked, p.head, p.images[:3], 1, regions=3),
    "maximize": lambda p: salve.maximize(p.hooked, p.head, 1, size=32, steps=2),
    "maximize pixels": lambda p: salve.maximize(
        p.hooked, p.hidden, 1, size=32, steps=2, parametrization="pixel", low=-1.0
    ),
    "tcav": _tcav,
}


def _numbers(result: Any) -> dict[str, Any]:
    """Return all that a result holds, records within it included."""
    found: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, Tensor) or not hasattr(value, "__dict__"):
            found[name] = value
        else:
            found |= {f"{name}.{inner}": each for inner, each in _numbers(value).items()}
    return found


def _assert_same(one: object, other: object) -> None:
    first, second = _numbers(one), _numbers(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert value.dtype == second[name].dtype, name
            torch.testing.assert_close(second[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert repr(second[name]) == repr(value), name


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def number_type(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CALLS)
def test_the_global_generator_is_neither_used_nor_moved(parts: Any, name: str) -> None:
    first = CALLS[name](parts)
    state = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        second = CALLS[name](parts)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    _assert_same(first, second)


@pytest.mark.usefixtures("number_type")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "tcav"])
def test_results_do_not_depend_on_torchs_default_type(parts: Any, name: str) -> None:
    set_by_caller = torch.get_default_dtype()
    result = CALLS[name](parts)
    assert torch.get_default_dtype() == set_by_caller
    torch.set_default_dtype(torch.float32)
    _assert_same(CALLS[name](parts), result)


@pytest.mark.usefixtures("number_type")
def test_tcav_refuses_another_default_type_in_words(parts: Any) -> None:
    with pytest.raises(InputError, match=r"TCAV .* float32; call torch.set_default_dtype"):
        _tcav(parts)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, nullcontext])
def test_tcav_differentiates_in_any_mode(parts: Any, mode: Callable[[], Any]) -> None:
    expected = _tcav(parts)
    with mode():
        copies = SimpleNamespace(**{**vars(parts), "images": parts.images.clone()})
        _assert_same(_tcav(copies), expected)
