"""Reading and replacing the activations of a model, leaving the model as it was found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from salve_plugin.errors import HookNotFiredError, UnknownSiteError
from salve_plugin.site import HEAD_INPUT, Site

Replace = Callable[[Tensor], Tensor | None]


@contextmanager
def tapped(model: nn.Module, site: Site, function: Replace) -> Iterator[None]:
    """Pass the site's activation through `function` in every forward pass of the context.

    Args:
        model: the bare model.
        site: which activation.
        function: gets the activation; a tensor that it returns takes the activation's place.
    """
    module = model.get_submodule(site.module)

    def before(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        result = function(inputs[0])
        return None if result is None else (result, *inputs[1:])

    def after(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return function(output)
        result = function(output[0])
        return None if result is None else (result, *output[1:])

    if site.side == "in":
        handle = module.register_forward_pre_hook(before)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def reading(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Keep the sites' activations of the latest forward pass, by site name.

    The tensors are copies still attached to the graph, so a later in-place operation of the model
    cannot change them.

    Raises:
        HookNotFiredError: at the end of the context, if a site was never computed.
    """
    seen: dict[str, Tensor] = {}

    def keep_as(name: str) -> Replace:
        def keep(activation: Tensor) -> None:
            seen[name] = activation.clone()

        return keep

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(tapped(model, site, keep_as(site.name)))
        yield seen
    silent = [site.name for site in sites if site.name not in seen]
    if silent:
        raise HookNotFiredError(
            f"the forward pass never computed {silent}; was the classifier reset or the module "
            "replaced after attach()? Attach the model again"
        )


class HookedModel(nn.Module):
    """A model with named sites.

    Attributes:
        model: the bare model; no hook stays on it.
        sites: by hook-point name, in forward order.
        attribution_site: the feature map or patch tokens where Grad-FAM looks; None without one.
        description: architecture and origin of the weights, as plain JSON values.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        attribution_site: Site | None,
        description: Mapping[str, object],
    ) -> None:
        """Name the sites of `model`; adapters call this."""
        super().__init__()
        self.model = model
        self.sites: Mapping[str, Site] = {site.name: site for site in sites}
        self.attribution_site = attribution_site
        self.description = description

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return exactly what the bare model returns."""
        return self.model(*args, **kwargs)

    def site(self, name: str) -> Site:
        """Return the site of that name.

        Raises:
            UnknownSiteError: if there is none; the message lists those that there are.
        """
        if name not in self.sites:
            raise UnknownSiteError(
                f"no site '{name}' in {type(self.model).__name__}; choose one of {list(self.sites)}"
            )
        return self.sites[name]

    def unembed(self, site: Site | str = HEAD_INPUT) -> tuple[Tensor, Tensor]:
        """Return copies of W (classes, width) and b (classes,) with logits = x W^T + b."""
        site = self.site(site) if isinstance(site, str) else site
        layer = self.model.get_submodule(site.readers[0])
        weight = layer.get_parameter("weight").detach().flatten(1).clone()
        bias = layer.bias
        return weight, (
            bias.detach().clone() if isinstance(bias, Tensor) else weight.new_zeros(len(weight))
        )
