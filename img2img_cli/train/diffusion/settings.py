"""Which preset, method and settings a run on a diffusion model has, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from img2img_cli.errors import UsageError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import list_presets, load_preset
from img2img_cli.presets.references import BUNDLED, is_network
from img2img_cli.presets.schema import Parameters
from img2img_cli.train.diffusion.methods import MethodName

BUNDLED_PRESET = "edit"
# Sides, pairs in a batch and learning rates that suit a method, where nothing else is asked for.
_RATES: Mapping[MethodName, float] = {"lora": 1e-4, "controlnet": 1e-5, "ip2p": 5e-5}
_OF_BUNDLED: Mapping[str, Any] = {"size": 256, "batch_size": 4, "learning_rate": 3e-4}
IP2P_DROPOUT = 0.05  # Brooks et al. 2023


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is made with. A run is resumed with the settings that it began with.

    Attributes:
        base: the preset whose model is taught.
        size: pictures are scaled to about `size * size` pixels.
        accumulate: batches whose gradients are summed in a step.
        rank, alpha: of a LoRA, which is scaled by alpha / rank.
        caption_dropout: the share of examples without their caption, for guidance.
    """

    base: str
    method: MethodName
    seed: int = 0
    size: int = 512
    batch_size: int = 1
    accumulate: int = 1
    learning_rate: float = 1e-4
    rank: int = 16
    alpha: float = 16.0
    caption_dropout: float = 0.0


def choose_run(base: str, method: str, *, seed: int, given: Mapping[str, Any]) -> tuple[Settings, Parameters, str]:
    """Return settings, the parameters of the base, and a sentence that says why.

    Args:
        base: `bundled` or a preset.
        method: auto, lora, controlnet or ip2p.
        given: settings that were named.

    Raises:
        PresetError: there is no such preset.
        UsageError: its model is a network of one pass, or it does other things than edit.
    """
    name = BUNDLED_PRESET if base == BUNDLED else base
    preset = load_preset(name)
    parameters = resolve(preset, {}).parameters
    if is_network(parameters.model) or parameters.task == "upscale" or parameters.upscaler is not None:
        raise UsageError(f"--base {base}: has no diffusion model to teach; choose bundled, sd15-edit or another edit")
    if parameters.quantization != "none":
        raise UsageError(f"--base {base}: quantized weights cannot be taught; choose a preset without quantization")
    if name not in list_presets():
        # The run's folder can be moved; what it extends could not be found then.
        raise UsageError(f"--base {base}: must be the name of a preset; `img2img presets list` shows them")
    is_bundled = parameters.model == BUNDLED
    chosen, reason = _choose_method(method, is_bundled=is_bundled)
    defaults: dict[str, Any] = {"size": parameters.image_size, "learning_rate": _RATES[chosen]}
    if is_bundled:
        defaults |= _OF_BUNDLED
        # It decides colours and strokes at the first step; more of them only blur what was learnt there.
        parameters = parameters.model_copy(update={"num_inference_steps": 1})
    if chosen == "ip2p":
        defaults["caption_dropout"] = IP2P_DROPOUT
    elif parameters.guidance_scale > 1 and parameters.true_cfg_scale <= 1:
        defaults["caption_dropout"] = 0.1
    settings = Settings(base=name, method=chosen, seed=seed, **defaults | dict(given))
    return settings, parameters, f"method {chosen} on {base}: {reason}"


def _choose_method(method: str, *, is_bundled: bool) -> tuple[MethodName, str]:
    match method:
        case "lora":
            return "lora", "as asked for"
        case "controlnet":
            return "controlnet", "as asked for"
        case "ip2p":
            return "ip2p", "as asked for"
    if is_bundled:
        return "controlnet", "the bundled model sees the input through its ControlNet"
    return "lora", "a few million numbers beside the model, which fit wherever it does"
