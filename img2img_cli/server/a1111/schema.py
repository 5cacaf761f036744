"""What AUTOMATIC1111's web UI takes: its requests' fields, and the samplers that they name."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from img2img_cli.errors import UsageError
from img2img_cli.presets.files import suggest
from img2img_cli.presets.samplers import NO_SIGMAS, NO_SPACING, SAMPLERS, SCHEDULES
from img2img_cli.server.orders import FORMATS, WebFormat

_NONE = ("", "none")  # names that choose nothing
_NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>")

_ANCESTRAL = {"Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE"}  # whose eta is 1


class _Request(BaseModel):
    """Fields of the web UI; others are ignored and `null` stands for a default, as with the web UI itself."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Img2ImgRequest(_Request):
    """The web UI's request for pictures from pictures."""

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
        """The prompt without `<lora:NAME:WEIGHT>` and its like, which the web UI takes out too."""
        return _NETWORK.sub("", self.prompt)

    @property
    def plain_negative_prompt(self) -> str:
        """The same of the negative prompt."""
        return _NETWORK.sub("", self.negative_prompt)

    @property
    def sampler(self) -> str:
        """The sampler's name, by the older of its two keys too."""
        return self.sampler_name or self.sampler_index

    def check(self) -> None:
        """Refuse what would make another picture and cannot be done here.

        Raises:
            UsageError: naming the key.
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
        try:  # they come back in the answer
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
        """A line for each wish that is left aside, as it bears little on the picture or is every client's default."""
        notes = []
        if _NETWORK.search(self.prompt + self.negative_prompt):
            notes.append("prompt: <lora:…> and its like load nothing here; choose a preset with that LoRA")
        if self.mask and self.inpainting_fill == 0:
            notes.append("inpainting_fill: the picture itself is what is under the mask at first, as with 1")
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
        """Refuse what cannot be done here.

        Raises:
            UsageError: naming the key.
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
    """Whether a script's arguments leave it switched off: none, False, or units that are not enabled."""
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
    """A sampler of the web UI and its schedule, as `scheduler` and `scheduler_config`; nothing for the preset's own.

    Args:
        name: of a sampler, in newer versions' form or in the older one that ends in the schedule's name.
        schedule: the name or label of one, or empty.

    Raises:
        UsageError: no such sampler or schedule, or two that do not go together.
    """
    wanted = _find_schedule(schedule) if schedule else "automatic"
    known = {sampler.lower(): sampler for sampler in SAMPLERS}
    lowered = " ".join(name.split()).lower()
    if lowered in ("", "automatic"):
        if wanted == "automatic":
            return {}
        lowered = "euler"  # as the web UI takes for granted
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
    """The key of a schedule that is named with spaces, underscores or in one word.

    Raises:
        UsageError: there is none.
    """
    packed = {key.replace(" ", ""): key for key in SCHEDULES}
    wanted = re.sub(r"[\s_]", "", name.lower())
    if wanted not in packed:
        raise UsageError(f"scheduler: no such schedule: {_shorten(name)}; there are {', '.join(SCHEDULES)}")
    return packed[wanted]


def choose_format(settings: dict[str, Any]) -> tuple[WebFormat, int | None]:
    """The format of results and its quality, as the web UI's settings have them.

    Raises:
        UsageError: naming the setting.
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
