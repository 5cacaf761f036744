"""The fields of AUTOMATIC1111's web UI requests, and its samplers and formats."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from img2img_cli.errors import UsageError
from img2img_cli.presets.files import suggest
from img2img_cli.presets.samplers import NO_SIGMAS, NO_SPACING, SAMPLERS, SCHEDULES
from img2img_cli.server.orders import FORMATS, WebFormat

_NONE = ("", "none")  # names that mean no choice
_NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>")

_ANCESTRAL = {"Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE"}  # samplers with an eta of 1


class _Request(BaseModel):
    """A request of the web UI. As there, unknown fields are ignored and `null` means the default."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Img2ImgRequest(_Request):
    """The web UI's img2img request."""

    init_images: list[str] = Field(min_length=1, max_length=16)
    resize_mode: int = Field(default=0, ge=0, le=3)
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    image_cfg_scale: float | None = None
    mask: str = ""
    mask_blur: float | None = Field(default=None, ge=0, le=200)
    mask_blur_x: float = Field(default=4, ge=0, le=200)
    mask_blur_y: float = Field(default=4, ge=0, le=200)
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=16384)
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float = 1
    latent_mask: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = []
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str = ""
    sampler_index: str = ""
    scheduler: str = ""
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1, le=1000)
    cfg_scale: float | None = None
    width: int | None = Field(default=None, ge=8, le=16384)
    height: int | None = Field(default=None, ge=8, le=16384)
    restore_faces: bool = False
    tiling: bool = False
    eta: float | None = None
    s_min_uncond: float = 0
    s_churn: float = 0
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float = 1
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str = ""
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    script_name: str = ""
    script_args: list[Any] = []
    alwayson_scripts: dict[str, Any] = {}
    infotext: str = ""
    send_images: bool = True
    save_images: bool = False
    include_init_images: bool = False

    @property
    def plain_prompt(self) -> str:
        """The prompt without tags such as `<lora:NAME:WEIGHT>`, which the web UI removes too."""
        return _NETWORK.sub("", self.prompt)

    @property
    def plain_negative_prompt(self) -> str:
        """The negative prompt without such tags."""
        return _NETWORK.sub("", self.negative_prompt)

    @property
    def sampler(self) -> str:
        """The sampler's name, from `sampler_name` or the older `sampler_index`."""
        return self.sampler_name or self.sampler_index

    def check(self) -> None:
        """Refuse fields that would change the picture but are not supported here.

        Raises:
            UsageError: a field is not supported; the message names it.
        """
        wishes = {
            "initial_noise_multiplier": self.initial_noise_multiplier != 1,
            "latent_mask": self.latent_mask != "",
            "styles": any(name.lower() not in _NONE for name in self.styles),
            "subseed_strength": self.subseed_strength != 0,
            "seed_resize_from_w": min(self.seed_resize_from_w, self.seed_resize_from_h) > 0,
            "restore_faces": self.restore_faces,
            "tiling": self.tiling,
            "s_min_uncond": self.s_min_uncond != 0,
            "s_churn": self.s_churn != 0,
            "refiner_checkpoint": self.refiner_checkpoint.lower() not in _NONE,
            "script_name": self.script_name.lower() not in _NONE,
            "infotext": self.infotext.strip() != "",
            "inpainting_fill": self.mask != "" and self.inpainting_fill > 1,
        }
        for key, wished in wishes.items():
            if wished:
                raise UsageError(f"{key}: {_shorten(getattr(self, key))} cannot be done here; leave it out")
        try:  # the response repeats them
            echo = [self.override_settings, self.script_args, self.alwayson_scripts, self.styles]
            json.dumps(echo, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise UsageError(
                "override_settings, script_args, alwayson_scripts, styles: must be finite numbers and text in UTF-8"
            ) from None
        if self.mask_blur is None and self.mask and self.mask_blur_x != self.mask_blur_y:
            raise UsageError("mask_blur_x, mask_blur_y: must be the same here; send mask_blur for both")
        for name, script in self.alwayson_scripts.items():
            if not _is_idle(script):
                raise UsageError(f"alwayson_scripts: no script {_shorten(name)} here; leave it out")

    def list_unused(self) -> tuple[str, ...]:
        """Return a note for each unsupported field that affects the picture little or that clients send by default."""
        notes = []
        if _NETWORK.search(self.prompt + self.negative_prompt):
            notes.append("prompt: tags such as <lora:…> have no effect here; choose a preset with that LoRA")
        if self.mask and self.inpainting_fill == 0:
            notes.append("inpainting_fill: 0 works like 1 here; the picture itself is under the mask at first")
        own_eta = {"DDIM": 0.0} | dict.fromkeys(_ANCESTRAL, 1.0)
        for name, eta in own_eta.items():
            if self.sampler.startswith(name) and self.eta not in (None, eta):
                notes.append(f"eta: {name} works with {eta:g} here")
        if self.s_noise != 1:
            notes.append("s_noise: samplers work with 1 here")
        if self.save_images:
            notes.append("save_images: nothing is kept on the server")
        known = {"sd_model_checkpoint", "samples_format", "jpeg_quality"}
        notes += [
            f"override_settings: {_shorten(key)} has no effect here"
            for key, value in self.override_settings.items()
            if key not in known and not (key == "sd_vae" and str(value).lower() in (*_NONE, "automatic"))
        ]
        return tuple(notes)


class ExtraRequest(_Request):
    """The web UI's request to enlarge one picture."""

    image: str = ""
    resize_mode: int = Field(default=0, ge=0, le=1)
    upscaling_resize: float = Field(default=2, ge=1, le=8)
    upscaling_resize_w: int = Field(default=512, ge=1, le=16384)
    upscaling_resize_h: int = Field(default=512, ge=1, le=16384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = Field(default=0, ge=0, le=1)
    gfpgan_visibility: float = Field(default=0, ge=0, le=1)
    codeformer_visibility: float = Field(default=0, ge=0, le=1)

    def check(self) -> None:
        """Refuse fields that are not supported here.

        Raises:
            UsageError: a field is not supported; the message names it.
        """
        wishes = {
            "gfpgan_visibility": self.gfpgan_visibility > 0,
            "codeformer_visibility": self.codeformer_visibility > 0,
            "upscaler_2": self.extras_upscaler_2_visibility > 0 and self.upscaler_2.lower() not in _NONE,
        }
        for key, wished in wishes.items():
            if wished:
                raise UsageError(f"{key}: {_shorten(getattr(self, key))} cannot be done here; leave it out")


class FileData(_Request):
    """One of several pictures to enlarge."""

    data: str
    name: str = ""


class ExtraBatchRequest(ExtraRequest):
    """The web UI's request to enlarge several pictures."""

    imageList: list[FileData] = Field(min_length=1, max_length=16)  # noqa: N815 - the web UI's spelling


def _is_idle(script: Any) -> bool:
    """Return whether a script's arguments leave it off: no arguments, False or None first, or no unit enabled."""
    arguments = script.get("args") if isinstance(script, dict) else script
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if not isinstance(arguments, list) or not arguments:
        return not arguments
    first = arguments[0]
    if isinstance(first, dict) and "enabled" in first:
        return all(isinstance(unit, dict) and not unit.get("enabled") for unit in arguments)
    return first is False or first is None


def _shorten(value: Any) -> str:
    text = str(value)
    return f"'{text[:40]}'" if len(text) <= 40 else f"'{text[:40]}…'"


def choose_sampler(name: str, schedule: str) -> dict[str, Any]:
    """Return `scheduler` and `scheduler_config` for a sampler of the web UI; empty for the preset's own sampler.

    Args:
        name: sampler; in the form of older versions it ends in the schedule's name.
        schedule: the schedule's name or label, or empty.

    Raises:
        UsageError: there is no such sampler or schedule, or they cannot be combined.
    """
    wanted = _find_schedule(schedule) if schedule else "automatic"
    known = {sampler.lower(): sampler for sampler in SAMPLERS}
    lowered = " ".join(name.split()).lower()
    if lowered in ("", "automatic"):
        if wanted == "automatic":
            return {}
        lowered = "euler"  # the web UI's default
    if lowered not in known:
        for ending in SCHEDULES:
            if lowered.endswith(f" {ending}"):
                lowered, wanted = lowered.removesuffix(f" {ending}"), ending
    if lowered not in known:
        raise UsageError(f"sampler_name: no such sampler: {_shorten(name)}{suggest(name, SAMPLERS)}")
    kind, settings, own = SAMPLERS[known[lowered]]
    change = SCHEDULES[own if wanted == "automatic" else wanted]
    if change is None:
        return {"scheduler": kind, "scheduler_config": settings}
    if kind not in NO_SIGMAS:
        change = {"use_karras_sigmas": False, "use_exponential_sigmas": False} | change
    elif change.keys() & {"use_karras_sigmas", "use_exponential_sigmas"}:
        raise UsageError(f"scheduler: {known[lowered]} has no schedule '{wanted}'; use automatic")
    if kind in NO_SPACING and "timestep_spacing" in change:
        raise UsageError(f"scheduler: {known[lowered]} has no schedule '{wanted}'; use automatic")
    return {"scheduler": kind, "scheduler_config": settings | change}


def _find_schedule(name: str) -> str:
    """Return the key of a schedule whose name has spaces, underscores or neither.

    Raises:
        UsageError: there is no such schedule.
    """
    packed = {key.replace(" ", ""): key for key in SCHEDULES}
    wanted = re.sub(r"[\s_]", "", name.lower())
    if wanted not in packed:
        raise UsageError(f"scheduler: no such schedule: {_shorten(name)}; there are {', '.join(SCHEDULES)}")
    return packed[wanted]


def choose_format(settings: dict[str, Any]) -> tuple[WebFormat, int | None]:
    """Return the format and quality (1 to 100; None for PNG or the default) from the web UI's settings.

    Raises:
        UsageError: a setting is invalid; the message names it.
    """
    name = str(settings.get("samples_format") or "png").lower()
    if name not in FORMATS:
        raise UsageError(f"samples_format: must be png, jpg or webp, not {_shorten(name)}")
    quality = settings.get("jpeg_quality")
    if FORMATS[name] == "png" or quality is None:
        return FORMATS[name], None
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise UsageError(f"jpeg_quality: must be from 1 to 100, not {_shorten(quality)}")
    return FORMATS[name], quality
