"""A model with named sites, where activations are read and replaced."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin import passes
from salve_plugin.composed import is_composed
from salve_plugin.errors import InputError, UnknownSiteError
from salve_plugin.faces.one_line import listed, shortened
from salve_plugin.hook_points import HookPoint
from salve_plugin.hooked_root import HookedRoot
from salve_plugin.images import as_input, refused_in_words
from salve_plugin.modes import evaluating
from salve_plugin.site import HEAD_INPUT, Side, Site
from salve_plugin.taps import Replace, check_fired, reading, tapped

__all__ = ["HookedModel", "evaluating", "reading", "tapped"]


SiteLike = str | Site | nn.Module | tuple[str | nn.Module, Side]
"""A site, by itself, by its name, or by the place where it is."""


class HookedModel(HookedRoot):
    """A model with named sites and, at each of them, a hook point.

    The hook points behave as TransformerLens' do (`run_with_cache`, `run_with_hooks`, `add_hook`,
    `reset_hooks`, `hooks`). No hook stays on the bare model: a forward pass taps only the sites
    that somebody listens to, and only while it runs, so that an idle one is the bare model's own.
    An attribute that is not found here is looked up in the bare model.

    Threads may share it: functions given to `run_with_hooks`, `run_with_cache` and `hooks` act in
    the caller's thread only, those added by `add_hook` in every thread.

    Attributes:
        model: the bare model; no hook stays on it.
        sites: by hook-point name, in forward order.
        attribution_site: the feature map or patch tokens where Grad-FAM looks; None without one.
        description: architecture and origin of the weights, as plain JSON values.
        heads: the classifier's linear layers by path, each with its share c in
            logits = sum of c (x W^T + b); empty if there is no site at the classifier.
        probe: images that the model is known to accept, (n, channels, height, width); None if
            nobody has tried any. It stays on its device when the model moves.
        hook_dict: the hook points by name.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        attribution_site: Site | None,
        description: Mapping[str, object],
        heads: Mapping[str, float] | None = None,
        probe: Tensor | None = None,
    ) -> None:
        """Name the sites of `model`; adapters call this.

        Args:
            model: the bare model.
            sites: in forward order; names must differ.
            attribution_site: one of `sites`, or None.
            description: plain JSON values.
            heads: the shares; by default the readers of `unembed.hook_in`, in equal parts.
            probe: images that the model is known to accept, (n, channels, height, width).

        Raises:
            InputError: if two sites have one name.
        """
        super().__init__()
        names = [site.name for site in sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"two sites are named {twice}; every site needs its own name")
        self.model = model
        self.sites: Mapping[str, Site] = dict(zip(names, sites, strict=True))
        self.attribution_site = attribution_site
        self.description = description
        if heads is None:
            readers = self.sites[HEAD_INPUT].readers if HEAD_INPUT in self.sites else ()
            heads = dict.fromkeys(readers, 1 / max(len(readers), 1))
        self.heads: Mapping[str, float] = dict(heads)
        # A plain attribute: as a buffer it would join the state dict and move with the model.
        self.probe = probe
        self._line: passes.Line | None = None
        self.setup()

    def setup(self) -> None:
        """Make the hook points; they are no submodules, so nothing joins the state dict."""
        self.hook_dict: dict[str, Any] = {}
        for name in self.sites:
            self.hook_dict[name] = self._make_point()
            self.hook_dict[name].name = name

    def _make_point(self) -> nn.Module:
        return HookPoint()

    def __repr__(self) -> str:
        """Say in one line what is attached; `model` prints the layers."""
        heads = listed(self.heads) if self.heads else "none"
        return shortened(
            f"<{type(self).__name__} of {type(self.model).__name__}: {len(self.sites)} sites, "
            f"classifier at {heads}>"
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return exactly what the bare model returns, unless a hook function changes it.

        Raises:
            HookNotFiredError: if somebody listens to a site that this pass did not compute.
        """
        if self._line is not None and not passes.open_passes():  # a replica in a new thread
            with passes.inside(self._line):
                return self._run(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        # Taps are set only where somebody listens, so that an idle model pays nothing.
        listening = [name for name, point in self.hook_dict.items() if _has_listeners(point)]
        if not listening:
            return self.model(*args, **kwargs)
        fired: dict[str, bool] = {}
        with ExitStack() as stack:
            # Entered one by one: if a later tap cannot be set, the stack takes the earlier ones
            # off.
            for name in listening:
                through = _through(self.hook_dict[name], name, fired)
                stack.enter_context(tapped(self.model, self.sites[name], through))
            output = self.model(*args, **kwargs)
        check_fired(listening, fired)
        return output

    def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the model's output and copies of its activations by name, in eval mode.

        The model is left as it was found, `incl_bwd=True` included: the gradients are in the
        cache, not in the parameters. Images are cast and moved as its parameters are. Arguments
        and errors are those of `HookedRoot`, or of TransformerLens where it is installed.
        """
        with self._cached(args, kwargs) as inputs:
            result: tuple[Any, Any] = super().run_with_cache(*inputs, **kwargs)
        return result

    @contextmanager
    def _cached(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the inputs as the model takes them, in eval mode, for any `run_with_cache`."""
        with evaluating(self.model, keep_autocast=True):
            inputs = self._inputs(args)
            images = inputs[0] if inputs else None
            if kwargs.get("remove_batch_dim") and isinstance(images, Tensor) and len(images) != 1:
                raise InputError(
                    f"remove_batch_dim drops the axis of one image, and the batch has "
                    f"{len(images)}; run one image, or leave remove_batch_dim out"
                )
            with refused_in_words(self.model, images, "inputs"):
                yield inputs

    def _inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return floating-point tensors as the model takes them, all else as it is."""
        return tuple(
            as_input(self.model, arg)
            if isinstance(arg, Tensor) and arg.is_floating_point()
            else arg
            for arg in args
        )

    def _replicate_for_data_parallel(self) -> Any:
        """Tell the replica, which DataParallel runs in a new thread, for whom it works."""
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call] # torch leaves it untyped
        replica._line = passes.open_passes()
        return replica

    def site(self, at: "SiteLike") -> Site:
        """Return the site of that name, or at that place.

        Args:
            at: a hook-point name, a site, a module of the model or its path, which stand for its
                output, or one of these two and "in" or "out".

        Raises:
            UnknownSiteError: if there is none; the message lists those that there are.
        """
        at = at.name if isinstance(at, Site) else at
        if isinstance(at, str) and at in self.sites:
            return self.sites[at]
        part, side = at if isinstance(at, tuple) and len(at) == 2 else (at, "out")
        for site in self.sites.values():
            module = self.model.get_submodule(site.module)
            # Only a text is compared: an array would be, element by element.
            named = isinstance(part, str) and part == site.module
            if site.side == side and (named or part is module):
                return site
        where = repr(part) if isinstance(part, str) else f"at {side!r} of {type(part).__name__}"
        raise UnknownSiteError(
            f"no site {shortened(where, 80)} in {type(self.model).__name__}; choose one of "
            f"{list(self.sites)}. More in a model of your own: attach(model, head=..., blocks=...)"
        )

    def unembed(
        self, site: Site | str = HEAD_INPUT, *, partial: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return copies of W (classes, width) and b (classes,) with logits = x W^T + b.

        Heads that read the same site are added up with their shares. If other heads read other
        sites (a distilled model), no single W gives the logits: then `partial=True` returns this
        site's term, and the logits are the sum of all head sites' terms.

        Args:
            site: a site that the classifier reads.
            partial: whether one term of several is welcome.

        Raises:
            UnknownSiteError: if there is no such site.
            InputError: if the classifier does not read it, or reads other sites too and `partial`
                is not given.
        """
        site = site if isinstance(site, Site) else self.site(site)
        own_heads = [path for path in site.readers if path in self.heads]
        other_heads = sorted(set(self.heads) - set(own_heads))
        if not own_heads:
            raise InputError(
                f"the classifier does not read site '{site.name}'; it reads {self.head_sites}"
            )
        if other_heads and not partial:
            raise InputError(
                f"site '{site.name}' alone does not give the logits: they also depend on "
                f"{other_heads}, at the sites {self.head_sites}. "
                "hooked.unembed(site, partial=True) returns one site's term; the logits are the "
                "sum of the terms"
            )
        terms = [(self._layer(path), self.heads[path]) for path in own_heads]
        weight = torch.stack([_float(layer.weight) * share for layer, share in terms]).sum(0)
        biases = [
            _float(layer.bias) * share for layer, share in terms if isinstance(layer.bias, Tensor)
        ]
        bias = torch.stack(biases).sum(0) if biases else weight.new_zeros(len(weight))
        return weight.flatten(1), bias  # that of a 1x1 convolution has two more axes

    @property
    def head_sites(self) -> tuple[str, ...]:
        """Names of the sites that the classifier reads: one, or one for each distinct input."""
        return tuple(
            name
            for name, site in self.sites.items()
            if any(path in self.heads for path in site.readers)
        )

    def _layer(self, path: str) -> Any:
        """Return the classifier's layer, if it still is one."""
        layer = self.model.get_submodule(path)
        if not isinstance(getattr(layer, "weight", None), Tensor):
            raise InputError(
                f"'{path}' is now {type(layer).__name__}, no longer a linear layer: the "
                "classifier was reset after attach(). Attach the model again"
            )
        return layer

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up in the bare model if it is not found here."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not `self.model`: while a copy or an unpickled model is being built there are no
            # modules yet, and the look-up would come back here without end.
            model = self.__dict__.get("_modules", {}).get("model")
            # Copy, pickle and others ask for special methods by getattr: those of the bare model
            # are not ours.
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)


def check_attached(hooked: object) -> None:
    """Refuse a bare model where the attached one is meant.

    Raises:
        InputError: that says how to attach it.
    """
    if not isinstance(hooked, HookedModel):
        raise InputError(
            f"an attached model was expected, got {type(hooked).__name__}; attach it first: "
            "hooked = salve.attach(model)"
        )


def _has_listeners(point: nn.Module) -> bool:
    if point._forward_hooks or point._backward_hooks or point._backward_pre_hooks:
        return True  # torch's own, by which TransformerLens' points work
    return isinstance(point, HookPoint) and point.has_hooks()


def _through(point: nn.Module, name: str, fired: dict[str, bool]) -> Replace:
    """Return the function that sends an activation through a hook point.

    It goes in as a copy, which nobody else can change in place afterwards, and comes out as
    another, so that an in-place operation that follows changes neither what a hook function has
    kept nor the view that torch's backward hooks put around the output.
    """

    def through(activation: Tensor) -> Tensor:
        fired[name] = True
        result: Tensor = point(activation.clone())
        return result.clone()

    return through


def _float(tensor: Tensor) -> Tensor:
    """Return a detached copy in single precision, or in the tensor's own if that is higher."""
    if is_composed(tensor):
        tensor = tensor.dequantize()  # what a quantized weight stands for
    kind = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(kind, copy=True)
