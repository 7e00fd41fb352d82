"""Several threads on one model: what a pass records or replaces belongs to that pass."""

import _thread
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import HookNotFiredError, InputError
from salve_plugin.hooks import HookedModel, evaluating, reading, tapped
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.validate.grad_fam import LayerGradFam

THREADS, CALLS = 3, 30


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let threads take turns 100 times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def shared() -> HookedModel:
    """A model of timm's with the sites of its adapter; without TransformerLens' shared points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model("test_resnet", num_classes=4).eval()
    hooked = attach(model)
    return HookedModel(
        model,
        list(hooked.sites.values()),
        attribution_site=hooked.attribution_site,
        description=hooked.description,
        heads=hooked.heads,
    )


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(THREADS)]


def wrong(work: Callable[[int], Any], expected: list[Any], calls: int = CALLS) -> int:
    """Call `work` with each thread's number, all threads at once; count the wrong results."""
    together = threading.Barrier(THREADS)

    def many(number: int) -> int:
        together.wait()
        return sum(not same(work(number), expected[number]) for _ in range(calls))

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(many, range(THREADS)))


def same(got: Any, expected: Any) -> bool:
    if isinstance(got, Tensor):
        return torch.equal(got, expected)
    if isinstance(got, dict):
        return got.keys() == expected.keys() and all(same(got[key], expected[key]) for key in got)
    return all(same(*pair) for pair in zip(got, expected, strict=True))


def check(work: Callable[[int], Any], calls: int = CALLS) -> None:
    alone = [work(number) for number in range(THREADS)]
    assert not any(same(alone[0], other) for other in alone[1:])
    assert wrong(work, alone, calls) == 0


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def functions_on(hooked: HookedModel) -> int:
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in hooked.hook_dict.values())


def test_run_with_cache_returns_its_own_activations(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    check(lambda number: shared.run_with_cache(batches[number]))
    assert hooks_on(shared.model) == functions_on(shared) == 0


def test_run_with_hooks_changes_its_own_pass_only(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    def work(number: int) -> Tensor:
        def scale(tensor: Tensor, hook: Any) -> Tensor:
            return tensor * (number + 2)

        name = next(iter(shared.sites))
        hooked: Tensor = shared.run_with_hooks(
            batches[0], fwd_hooks=[(name, scale), (HEAD_INPUT, scale)]
        )
        return hooked

    check(work)
    assert hooks_on(shared.model) == functions_on(shared) == 0


def test_a_pass_without_hooks_is_the_bare_one_while_others_replace(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    def zero(tensor: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(tensor)

    def work(number: int) -> Tensor:
        if number == 2:
            replaced: Tensor = shared.run_with_hooks(batches[2], fwd_hooks=hooks)
            return replaced
        bare: Tensor = (shared, shared.model)[number](batches[number])
        return bare

    hooks = [(lambda name: True, zero)]
    check(work)


def test_gradients_are_those_of_the_pass(shared: HookedModel, batches: list[Tensor]) -> None:
    name = next(iter(shared.sites))

    def work(number: int) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def scale(gradient: Tensor, hook: Any) -> Tensor:
            seen.append(gradient.clone())
            return gradient * (number + 2)

        images = batches[number].clone().requires_grad_()
        with shared.hooks(bwd_hooks=[(name, scale)]):
            output = shared(images)
            (gradient,) = torch.autograd.grad(output[0, number], images)
        assert len(seen) == 1
        return seen[0], gradient

    check(work)


def test_reading_sees_its_own_pass(shared: HookedModel, batches: list[Tensor]) -> None:
    def work(number: int) -> dict[str, Tensor]:
        with torch.no_grad(), reading(shared.model, list(shared.sites.values())) as seen:
            shared.model(batches[number])
        return seen

    check(work)


def test_recordings_hold_their_own_images(
    shared: HookedModel, batches: list[Tensor], tmp_path: Path
) -> None:
    folders = iter(range(1000))

    def work(number: int) -> Tensor:
        folder = tmp_path / str(next(folders))
        loader = [(batches[number] * scale, torch.tensor([0])) for scale in (1.0, 0.5)]
        acts = record(shared, loader, folder=folder, progress=False)
        return torch.cat([rows.x for rows in acts.batches(8)])

    check(work, calls=10)


def test_grad_fam_explains_its_own_images(shared: HookedModel, batches: list[Tensor]) -> None:
    fam = LayerGradFam.of(shared, dictionary_at(shared.site(HEAD_INPUT)))
    check(lambda number: fam.attribute(batches[number], number))
    assert not any(parameter.grad is not None for parameter in shared.model.parameters())


def dictionary_at(site: Site) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    encoder, atoms = torch.randn(2, 8, site.width, generator=generator)
    tensors = {
        "encoder_weight": encoder,
        "encoder_bias": torch.randn(8, generator=generator),
        "atoms": nn.functional.normalize(atoms),
        "decoder_bias": torch.zeros(site.width),
    }
    return Dictionary(tensors, create("l1", {}), site)


def test_all_of_it_at_once_is_still_right(shared: HookedModel, batches: list[Tensor]) -> None:
    fam = LayerGradFam.of(shared, dictionary_at(shared.site(HEAD_INPUT)))

    def zero(tensor: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(tensor)

    def work(number: int) -> Any:
        if number == 0:
            return shared.run_with_cache(batches[0])
        if number == 1:
            return fam.attribute(batches[1], 1)
        return shared.run_with_hooks(batches[2], fwd_hooks=[(HEAD_INPUT, zero)])

    alone = [work(number) for number in range(THREADS)]
    assert wrong(work, alone) == 0


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_functions_that_add_hook_adds_are_everybody_s_and_those_of_a_call_are_not(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    plain, calls = shared(batches[0]), []
    with shared.hooks([(HEAD_INPUT, lambda tensor, hook: tensor * 0)]):
        assert torch.equal(in_a_thread(lambda: shared(batches[0])), plain)
        in_a_thread(shared.reset_hooks)  # does not reach into this call
        assert not torch.equal(shared(batches[0]), plain)
        shared.reset_hooks()
        assert torch.equal(shared(batches[0]), plain)
    shared.add_hook(HEAD_INPUT, lambda tensor, hook: calls.append(threading.get_ident()))
    in_a_thread(lambda: shared(batches[0]))
    shared(batches[0])
    shared.reset_hooks()
    assert len(set(calls)) == len(calls) == 2
    assert functions_on(shared) == 0


def test_a_thread_that_gets_the_context_takes_part_and_another_is_told(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    sites = [shared.site(HEAD_INPUT)]
    with torch.no_grad(), reading(shared.model, sites) as seen:
        context = contextvars.copy_context()
        in_a_thread(lambda: context.run(shared.model, batches[0]))
    assert torch.equal(seen[HEAD_INPUT], shared.run_with_cache(batches[0])[1][HEAD_INPUT])
    with pytest.raises(HookNotFiredError, match="thread"), reading(shared.model, sites):
        in_a_thread(lambda: shared.model(batches[0]))


def replica_of(model: nn.Module) -> nn.Module:
    """Return what DataParallel makes for a device, over the same parameters."""
    made: dict[nn.Module, nn.Module] = {
        module: module._replicate_for_data_parallel()  # type: ignore[no-untyped-call] # torch leaves it untyped
        for module in model.modules()
    }
    for module, replica in made.items():
        for name, child in module.named_children():
            replica._modules[name] = made[child]
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter)
    return made[model]


def test_a_replica_of_data_parallel_works_for_the_pass_that_made_it(
    shared: HookedModel, batches: list[Tensor]
) -> None:
    site = shared.site(HEAD_INPUT)
    expected = shared.run_with_cache(batches[0], names_filter=HEAD_INPUT)[1][HEAD_INPUT]
    with torch.no_grad(), reading(shared.model, [site]) as seen:
        replica = replica_of(shared.model)
        in_a_thread(lambda: replica(batches[0]))
        assert torch.equal(seen[HEAD_INPUT], expected)

        def read_too() -> None:
            with reading(shared.model, [site]):
                shared.model(batches[1])
                with pytest.raises(InputError, match="one after the other"):
                    in_a_thread(lambda: replica(batches[0]))

        in_a_thread(read_too)

    cached: list[Tensor] = []
    with shared.hooks([(HEAD_INPUT, lambda tensor, hook: cached.append(tensor))]):
        hooked_replica = replica_of(shared)
        in_a_thread(lambda: hooked_replica(batches[0]))
    assert [torch.equal(each, expected) for each in cached] == [True]
    in_a_thread(lambda: hooked_replica(batches[0]))
    assert len(cached) == 1


def outside_of_python(work: Callable[[], Tensor]) -> Tensor:
    """Run in a thread that Python's `threading` has not made, like autograd's for a device."""
    results: Queue[Tensor] = Queue()
    _thread.start_new_thread(lambda: results.put(work()), ())
    return results.get(timeout=60)


@pytest.mark.parametrize("where", [lambda work: work(), outside_of_python])
def test_a_checkpointed_module_is_replaced_in_its_second_run_too(where: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(self.body, x, use_reentrant=False)
            return result

    torch.manual_seed(0)
    model, images = Saving(), torch.randn(2, 4, requires_grad=True)
    site = Site("body", "body.1", "out", "pooled", 4)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        with tapped(model, site, lambda x: x * x):
            total = run(images).sum()
            result: Tensor = where(lambda: torch.autograd.grad(total, images)[0])
        return result

    assert torch.equal(gradient(model), gradient(model.body))


def test_a_model_stays_in_eval_mode_until_the_last_thread_is_through() -> None:
    for first_leaves_first in (True, False):
        model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        contexts = [evaluating(model), evaluating(model)]
        for context in contexts:
            context.__enter__()
            assert not model[0].training
        first, last = contexts if first_leaves_first else contexts[::-1]
        first.__exit__(None, None, None)
        assert not model[0].training
        last.__exit__(None, None, None)
        assert [module.training for module in model.modules()] == [True, True, False]
