"""Train a bundled network on photographs: the recipes of `restore`, `upscale` and `colorize` behind one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from img2img_cli.engines.nets.colour_net import ColourNet
from img2img_cli.engines.nets.folder import Net, load_net_folder, save_net
from img2img_cli.engines.nets.picture_unet import PictureUNet
from img2img_cli.engines.nets.style_net import StyleNet
from img2img_cli.engines.nets.upscale_net import UpscaleNet
from img2img_cli.errors import UsageError
from img2img_cli.train.loop import Batch, Stage, run_stage
from img2img_cli.train.nets import colorize, restore, style, upscale
from img2img_cli.train.nets.features import SqueezeNetFeatures
from img2img_cli.train.nets.photographs import CleanCrops

LEARNING_RATE = 6e-4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        make_net: returns a new network with random weights.
        draw_pairs: returns an endless iterator of batches with `input` and `target`, float32 `(B, 3, H, W)` in 0..1,
            and, for a network with several heads, `scale`; or of what `make_loss` takes.
        make_loss: returns the loss, a module called with a network, a batch and a device, for photographs, a network
            and trained features or None; None for the mean difference from `target`.
        finish: what is done to the trained network and its loss before it is written.
        take_up: undoes `finish` on a finished network that the training goes on from.
        read: reads the photographs of a folder of shards.
    """

    make_net: Callable[[], Net]
    draw_pairs: Callable[[CleanCrops], Iterator[Batch]]
    make_loss: Callable[[CleanCrops, Any, SqueezeNetFeatures | None], nn.Module] | None = None
    finish: Callable[[Any, Any], None] | None = None
    take_up: Callable[[Any, Any], None] | None = None
    read: Callable[[Path], CleanCrops] = CleanCrops.read


RECIPES = {
    "restore": Recipe(make_net=PictureUNet, draw_pairs=restore.draw_pairs),
    "upscale": Recipe(make_net=UpscaleNet, draw_pairs=upscale.draw_pairs),
    "colorize": Recipe(
        make_net=ColourNet,
        draw_pairs=colorize.draw_pairs,
        make_loss=colorize.make_loss,
        finish=colorize.finish,
        take_up=colorize.take_up,
        read=colorize.read_photographs,
    ),
    "style": Recipe(
        make_net=StyleNet, draw_pairs=style.draw_pairs, make_loss=style.make_loss, read=style.StylePictures.read
    ),
}


def train_net(
    name: str,
    *,
    data: Path,
    out: Path,
    minutes: float,
    most_steps: int | None = None,
    device: torch.device,
    start: Path | None = None,
    features: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    say: Callable[[str], None],
) -> None:
    """Train a network until the time is up and write it into `out`, as `engines.nets.folder` reads it.

    Args:
        name: a key of `RECIPES`.
        data: a folder of shards, as `train.data.list_shards` reads it.
        out: also takes the checkpoint `NAME.pt` and the log `NAME.jsonl`.
        start: the folder of the network to go on from; a new one if None.
        features: a file of SqueezeNet 1.0's weights, whose features the network learns beside its task.

    Raises:
        UsageError: `data` holds no shard, `start` another kind of network, or this network learns no features.
        ModelError: as `load_net_folder` and `SqueezeNetFeatures.read`.
    """
    recipe = RECIPES[name]
    if features is not None and recipe.make_loss is None:
        raise UsageError(f"--features: {name} is learnt without; leave the option out")
    taught = SqueezeNetFeatures.read(features) if features is not None else None
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = recipe.make_net()
    if start is not None:
        known, net = net, load_net_folder(start)
        if type(net) is not type(known):
            raise UsageError(f"{start}: a {type(net).__name__}, where {name} needs a {type(known).__name__}")
    net.train().requires_grad_(True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    say(f"{name}: reading photographs")
    crops = recipe.read(data)
    say(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} million parameters, {minutes:g} minutes")

    own_loss = recipe.make_loss(crops, net, taught).to(device) if recipe.make_loss is not None else None
    if start is not None and recipe.take_up is not None:
        recipe.take_up(net, own_loss)
    modules: dict[str, nn.Module] = {"net": net} if own_loss is None else {"net": net, "loss": own_loss}

    def compute_loss(batch: Batch, step: int) -> torch.Tensor:
        if own_loss is not None:
            found: torch.Tensor = own_loss(net, batch, device)
            return found
        arguments = [batch["scale"]] if "scale" in batch else []
        made = net(batch["input"].to(device, memory_format=torch.channels_last), *arguments)
        loss: torch.Tensor = (made.float() - batch["target"].to(device)).abs().mean()
        return loss

    run_stage(
        Stage(name=name, modules=modules, compute_loss=compute_loss, learning_rate=LEARNING_RATE),
        lambda: recipe.draw_pairs(crops),
        minutes=minutes,
        most_steps=most_steps,
        folder=out,
        device=device,
        resume=resume,
        seed=seed,
    )
    if recipe.finish is not None:
        recipe.finish(net, own_loss)
    save_net(net, out)
    say(f"{name}: written to {out}")
