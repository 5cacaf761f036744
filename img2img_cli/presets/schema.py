"""The parameters of one run: every preset key, its type, range and default."""

from __future__ import annotations

import json
import math
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from img2img_cli.presets.references import (
    BUNDLED,
    NO_MODEL,
    is_network,
    is_style_network,
    list_files,
    locate_model,
    make_absolute,
    parse_file,
    split_folder,
    split_references,
)
from img2img_cli.presets.weight_files import check_weights

Task = Literal["edit", "colorize", "upscale", "restore"]
ControlKind = Literal["grey", "softedge", "canny", "picture", "lineart", "depth", "openpose"]
Look = Literal[
    "bw",
    "comic",
    "erase",
    "fog",
    "golden",
    "ink",
    "mosaic",
    "night",
    "oil",
    "pencil",
    "pixel",
    "sepia",
    "style",
    "watercolour",
    "winter",
]
MAP_KINDS = ("lineart", "depth", "openpose")  # maps that img2img cannot compute; the user must supply them
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8"]
Compile = Literal["never", "auto"]
Offload = Literal["auto", "none", "model", "group", "sequential"]
SIZE_PATTERN = r"^(original|model|[1-9]\d{0,4}x[1-9]\d{0,4})$"
MAX_PIXELS = 200_000_000
CARD_KEYS = frozenset(
    {"description", "license", "gated", "memory_gib", "controlnets"}
)  # they describe a preset and change no result
PIPELINE_KEYS = (
    "model",
    "revision",
    "variant",
    "vae",
    "lora",
    "embedding",
    "upscaler",
    "look",
    "controlnet",
    "controlnet_revision",
    "ip_adapter",
    "ip_adapter_image_encoder",
    "ip_adapter_scale",
    "ip_adapter_blocks",
    "scheduler",
    "scheduler_config",
    "quantization",
    "refiner",
    "compile",
    "dtype",
)
Unit = Annotated[float, Field(ge=0, le=1)]


def _split_references(value: Any) -> Any:
    """Split a text of several references, as `--set` and CSV files give them; return other values unchanged."""
    return split_references(value) if isinstance(value, str) else value


def _check_text(text: str) -> str:
    """Refuse lone surrogates, which a command line with invalid UTF-8 also yields: they cannot be written.

    Raises:
        ValueError: the text cannot be encoded in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text in UTF-8") from None
    return text


Text = Annotated[str, AfterValidator(_check_text)]


def fewest_steps(strength: float) -> int:
    """Return the length of the shortest schedule of which at least one step runs, with diffusers' rounding.

    Args:
        strength: greater than 0, at most 1.
    """
    return next(n for n in count(math.ceil(1 / strength)) if int(n * strength) >= 1)


class Parameters(BaseModel):
    """A resolved preset. Keys are spelled as diffusers spells them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: Task = Field(default="edit", description="What the preset is for.")
    description: Text = Field(default="", description="One line for `presets list`.")
    license: Text = Field(default="", description="Licence of the model's weights.")
    gated: bool = Field(default=False, description="Whether the hub asks for a licence to be accepted first.")
    memory_gib: float = Field(
        default=1.0, gt=0, le=1000, description="Device memory that one picture needs in 16 bits, about, in GiB."
    )
    model: str = Field(
        default=BUNDLED,
        description="'bundled', a hub id, a local diffusers folder, a single .safetensors file, or 'none'.",
        min_length=1,
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of the model on the hub.")
    variant: str | None = Field(default=None, description="File variant on the hub, such as fp16.")
    vae: str | None = Field(default=None, description="Another VAE: a hub id, local folder or .safetensors file.")
    lora: Annotated[tuple[str, ...], BeforeValidator(_split_references)] = Field(
        default=(),
        strict=False,
        description="LoRAs fused into the model, REF or REF:SCALE; REF is a hub id, owner/name/FILE or a local file.",
    )
    embedding: Annotated[tuple[str, ...], BeforeValidator(_split_references)] = Field(
        default=(),
        strict=False,
        description="Textual inversions whose names the prompt can use: hub ids, owner/name/FILE or local files.",
    )
    upscaler: str | None = Field(
        default=None,
        description="upscale: a net such as ESRGAN, before a diffusion model or in place of a network; as for lora.",
    )
    look: Look | None = Field(
        default=None,
        description="edit: what image processing makes, with model none: a style, style for a picture's, or erase.",
    )
    controlnet: str | None = Field(
        default=None, description="ControlNet: a hub id or local folder. The bundled model brings its own."
    )
    controlnet_revision: str | None = Field(default=None, description="Branch, tag or commit of the ControlNet.")
    control: ControlKind | None = Field(
        default=None, description="The control picture made from the input for the ControlNet."
    )
    controlnets: dict[ControlKind, str] = Field(
        default_factory=dict, description="The ControlNets of the model's family, for `--control` to choose from."
    )
    ip_adapter: str | None = Field(
        default=None, description="IP-Adapter for --style: owner/name/FILE.safetensors on the hub, or a local file."
    )
    ip_adapter_image_encoder: str = Field(
        default="h94/IP-Adapter/models/image_encoder",
        description="The IP-Adapter's image encoder: owner/name/FOLDER on the hub, or a local folder.",
    )
    ip_adapter_scale: float = Field(default=0.8, ge=0, le=2, description="Weight of the style picture.")
    ip_adapter_blocks: Literal["all", "style"] = Field(
        default="style", description="Where the style picture acts: in the layers that hold style, or in all."
    )
    scheduler: str | None = Field(
        default=None, description="diffusers scheduler class, such as DPMSolverMultistepScheduler.", max_length=80
    )
    scheduler_config: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="Settings of the scheduler in place of the model's own."
    )
    quantization: Quantization = Field(
        default="none", description="int8 halves the memory of the weights, through torchao; not with LoRAs."
    )
    refiner: str | None = Field(
        default=None, description="Stable Diffusion XL's refiner, to go over the result once more: as for model."
    )
    refiner_strength: float = Field(default=0.25, gt=0, le=1, description="Strength of the refiner's pass.")
    compile: Compile = Field(
        default="never", description="auto compiles the model for shapes that come often enough to pay for it."
    )
    dtype: Dtype = Field(default="auto", description="Number format of the weights; auto asks the device.")
    prompt: Text = Field(default="", description="What the result should show.")
    prompt_template: Text = Field(
        default="{prompt}", description="Wraps the prompt; {prompt} stands for it.", pattern=r"\{prompt\}"
    )
    negative_prompt: Text = Field(default="", description="What the result should not show.")
    strength: float = Field(default=0.6, gt=0, le=1, description="Share of the noise schedule that is run.")
    num_inference_steps: int = Field(default=20, ge=1, le=1000, description="Length of the noise schedule.")
    guidance_scale: float = Field(default=5.0, ge=0, le=50, description="Weight of the prompt; 1 and less is off.")
    guidance_end: Unit = Field(
        default=1.0, description="Share of the steps after which guidance stops: each of the rest takes half the time."
    )
    cache_interval: int = Field(
        default=1, ge=1, le=10, description="Steps from one in which the UNet computes all its features to the next."
    )
    tiny_vae: str | None = Field(
        default=None, description="A small VAE of the model's family, for `--fast` to use: as for vae."
    )
    true_cfg_scale: float = Field(
        default=1.0,
        ge=0,
        le=50,
        description="Weight of the prompt in models whose guidance_scale is an input (FLUX, Qwen).",
    )
    image_guidance_scale: float = Field(
        default=1.5, ge=0, le=20, description="InstructPix2Pix: weight of the input picture."
    )
    noise_level: int = Field(
        default=20, ge=0, le=350, description="Stable Diffusion's x4 upscaler: noise on the input, for more invention."
    )
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0, le=4, description="Weight of the ControlNet.")
    control_guidance_start: Unit = Field(default=0.0, description="Share of the steps before the ControlNet acts.")
    control_guidance_end: Unit = Field(default=1.0, description="Share of the steps after which it stops.")
    image_size: int = Field(
        default=512, ge=64, le=2048, description="The model works on about image_size x image_size pixels."
    )
    size: str = Field(
        default="original", pattern=SIZE_PATTERN, description="Size of the result: original, model or WxH."
    )
    mask_feather: float = Field(
        default=4.0, ge=0, le=200, description="Pixels over which a mask's inner border fades in."
    )
    saturation: float = Field(default=1.0, ge=0, le=4, description="colorize: factor on the model's chroma.")
    num_samples: int = Field(default=1, ge=1, le=16, description="colorize: samples whose colours are averaged.")
    variety: Unit = Field(
        default=0.0, description="colorize: how far the colours of a seed go from the likeliest; bundled network only."
    )
    scale: float = Field(default=2.0, ge=1, le=8, description="upscale: factor on both sides.")
    faithful: bool = Field(
        default=True,
        description="upscale: correct the result until, scaled down, it gives the input back. Set it to false for nets "
        "that take out noise and JPEG blocks, which would come back.",
    )
    keep_detail: Unit = Field(
        default=0.0,
        description="restore: share of the finest detail that is kept past the autoencoder, where noise is low.",
    )
    tile_size: int = Field(default=256, ge=64, le=2048, description="upscale, restore: side of a tile in pixels.")
    tile_overlap: int = Field(default=32, ge=0, le=512, description="upscale, restore: pixels that tiles share.")

    @property
    def full_prompt(self) -> str:
        """The prompt for the model: the template filled in, without spaces and commas at its ends."""
        return self.fill_template(self.prompt)

    def fill_template(self, prompt: str) -> str:
        """Return what the model reads for a prompt: in the template, without spaces and commas at the ends."""
        return self.prompt_template.replace("{prompt}", prompt).strip(" ,")

    @property
    def reads_no_words(self) -> bool:
        """Whether what makes the result, a network of one pass or image processing, takes no prompt."""
        return self.model == NO_MODEL or is_network(self.model)

    @property
    def takes_style(self) -> bool:
        """Whether the style comes from a picture: through a look, a network or an IP-Adapter."""
        return self.look == "style" or self.ip_adapter is not None or is_style_network(self.model)

    @property
    def steps_run(self) -> int:
        """The number of steps that run, with diffusers' rounding."""
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    @property
    def pipeline_key(self) -> str:
        """A key that is equal for parameters that can share a loaded pipeline."""
        return json.dumps(self.model_dump(include=set(PIPELINE_KEYS)))  # a path need not be UTF-8: no model_dump_json

    def list_files(self) -> list[tuple[str, str]]:
        """Return the same as `references.list_files`."""
        return list_files(self)

    def make_absolute(self) -> Parameters:
        """Return a copy in which the paths of local files and folders are absolute."""
        update: dict[str, Any] = {
            key: make_absolute(value)
            for key in ("model", "vae", "controlnet", "refiner", "upscaler", "ip_adapter", "ip_adapter_image_encoder")
            if (value := getattr(self, key)) is not None
        }
        update |= {key: tuple(map(make_absolute, getattr(self, key))) for key in ("lora", "embedding")}
        return self.model_copy(update=update)

    def to_record(self) -> dict[str, Any]:
        """Return the values that affect a result, in JSON types: all keys except `CARD_KEYS`."""
        return self.model_dump(mode="json", exclude=set(CARD_KEYS))

    def check_references(self) -> None:
        """Check all references to models and files without loading torch or downloading anything.

        Raises:
            ModelError: as in `locate_model`, `parse_file`, `check_weights` and `split_folder`.
        """
        locate_model(self.model)
        if self.refiner is not None:
            locate_model(self.refiner)
        for part in (self.controlnet, self.vae):
            if part is not None:
                locate_model(part, index="config.json")
        for role, text in self.list_files():
            found = parse_file(role, text)
            if not found.on_hub:
                check_weights(Path(found.repository, str(found.file)))
        if self.ip_adapter is not None:
            split_folder(self.ip_adapter_image_encoder)

    @model_validator(mode="after")
    def _check_together(self) -> Parameters:
        if int(self.num_inference_steps * self.strength) < 1:
            steps = fewest_steps(self.strength)
            raise ValueError(
                f"strength {self.strength:g} of {self.num_inference_steps} steps leaves no step to run; "
                f"use num_inference_steps {steps} or more, or strength "
                f"{math.ceil(1000 / self.num_inference_steps) / 1000:g} or more"
            )
        if "x" in self.size and math.prod(map(int, self.size.split("x"))) > MAX_PIXELS:
            raise ValueError(f"size {self.size} is more than {MAX_PIXELS // 1_000_000} million pixels")
        if self.tile_overlap * 2 >= self.tile_size:
            raise ValueError(f"tile_overlap {self.tile_overlap} must be under half of tile_size {self.tile_size}")
        if self.refiner is not None and int(self.num_inference_steps * self.refiner_strength) < 1:
            raise ValueError(
                f"refiner_strength {self.refiner_strength:g} of {self.num_inference_steps} steps leaves no step to run"
            )
        if self.compile != "never" and self.cache_interval > 1:
            raise ValueError("compile and cache_interval exclude each other: leave out one of the two")
        if self.quantization != "none" and self.lora:
            raise ValueError("quantization leaves no weights that a LoRA could be fused into; leave out one of the two")
        if self.upscaler is not None and self.task != "upscale":
            raise ValueError("upscaler is for presets whose task is upscale")
        if self.look is not None and (self.task != "edit" or self.model != NO_MODEL):
            raise ValueError("look is for presets whose task is edit and whose model is none")
        if self.model == NO_MODEL and self.upscaler is None and self.look is None:
            raise ValueError("model none needs an upscaler, such as a Real-ESRGAN .safetensors file, or a look")
        if self.control_guidance_start >= self.control_guidance_end:
            raise ValueError("control_guidance_start must be below control_guidance_end")
        return self
