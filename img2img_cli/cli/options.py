"""Options that the picture commands share, declared once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Optional, get_type_hints

import typer

_PRESET, _OUTPUT, _RUN = "Preset and model", "Output", "Run"

InputArgument = Annotated[str, typer.Argument(metavar="INPUT", help="Picture to read; - is stdin.", show_default=False)]
OutputArgument = Annotated[
    Optional[str],
    typer.Argument(
        metavar="OUTPUT", help="File or folder to write; - is stdout. Left out: beside INPUT.", show_default=False
    ),
]

ModelOption = Annotated[
    Optional[str],
    typer.Option(
        help="bundled, a hub id, a diffusers folder or a .safetensors file.",
        rich_help_panel=_PRESET,
        show_default=False,
    ),
]
LoraOption = Annotated[
    list[str],
    typer.Option(
        metavar="REF[:SCALE]",
        help="LoRA added to the preset's: a file, a hub id or owner/name/FILE; repeatable.",
        rich_help_panel=_PRESET,
    ),
]
EmbeddingOption = Annotated[
    list[str],
    typer.Option(
        metavar="REF",
        help="Textual inversion whose name the prompt uses: a file, a hub id or owner/name/FILE; repeatable.",
        rich_help_panel=_PRESET,
    ),
]
VaeOption = Annotated[
    Optional[str],
    typer.Option(help="Another VAE: hub id, folder or file.", rich_help_panel=_PRESET, show_default=False),
]
ControlnetOption = Annotated[
    Optional[str], typer.Option(help="ControlNet: hub id, folder or file.", rich_help_panel=_PRESET, show_default=False)
]
SchedulerOption = Annotated[
    Optional[str],
    typer.Option(
        help="A diffusers class, such as EulerDiscreteScheduler.", rich_help_panel=_PRESET, show_default=False
    ),
]
TruncatedOption = Annotated[
    str,
    typer.Option(
        help="What to do with an INPUT that is cut short or damaged: refuse it, or keep what can be decoded of it.",
        rich_help_panel=_RUN,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Any preset parameter; repeatable.", rich_help_panel=_PRESET),
]
FormatOption = Annotated[str, typer.Option(help="keep, png, jpeg, webp, tiff, bmp or avif.", rich_help_panel=_OUTPUT)]
QualityOption = Annotated[
    Optional[int],
    typer.Option(min=1, max=100, help="For jpeg, webp, avif.", rich_help_panel=_OUTPUT, show_default=False),
]
MetadataOption = Annotated[
    bool, typer.Option("--no-metadata", help="Write neither EXIF nor parameters.", rich_help_panel=_OUTPUT)
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_RUN)]
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Fewer steps, guidance in the first of them only, a small VAE if the preset has one; costs quality.",
        rich_help_panel=_RUN,
    ),
]
CompileOption = Annotated[
    Optional[str],
    typer.Option(
        help="auto compiles the model where a long batch pays for it; never.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Optional[str],
    typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_RUN, show_default=False),
]
OffloadOption = Annotated[
    str,
    typer.Option(
        help="What waits in main memory for its turn on a GPU: auto, none, model, group or sequential.",
        rich_help_panel=_RUN,
    ),
]
NoServerOption = Annotated[
    bool, typer.Option("--no-server", help="Run by itself even where a server is warm.", rich_help_panel=_RUN)
]
KeepWarmOption = Annotated[
    Optional[str],
    typer.Option(
        metavar="TIME",
        help="Leave a server behind so long, such as 10m: what follows starts at once.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_RUN)]


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What every picture command takes besides its own options."""

    preset: Annotated[
        Optional[str], typer.Option(help="Preset name or YAML file.", rich_help_panel=_PRESET, show_default=False)
    ] = None
    model: ModelOption = None
    lora: LoraOption = dataclasses.field(default_factory=list)
    embedding: EmbeddingOption = dataclasses.field(default_factory=list)
    controlnet: ControlnetOption = None
    vae: VaeOption = None
    scheduler: SchedulerOption = None
    set_: SetOption = dataclasses.field(default_factory=list)
    size: Annotated[
        Optional[str], typer.Option(help="original, model or WxH.", rich_help_panel=_OUTPUT, show_default=False)
    ] = None
    format: FormatOption = "keep"
    quality: QualityOption = None
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing OUTPUT.", rich_help_panel=_OUTPUT)
    ] = False
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace INPUT by the result.", rich_help_panel=_OUTPUT)
    ] = False
    no_metadata: MetadataOption = False
    truncated: TruncatedOption = "refuse"
    seed: Annotated[
        Optional[int],
        typer.Option(
            min=0, max=2**32 - 1, help="Same seed, same picture.", rich_help_panel=_RUN, show_default="random"
        ),
    ] = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = None
    fast: FastOption = False
    compile: CompileOption = None
    offload: OffloadOption = "auto"
    no_server: NoServerOption = False
    keep_warm: KeepWarmOption = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved job as YAML and stop.", rich_help_panel=_RUN)
    ] = False
    json: Annotated[bool, typer.Option("--json", help="One JSON line a result on stdout.", rich_help_panel=_RUN)] = (
        False
    )
    quiet: QuietOption = False


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the fields of `SharedOptions` to a command's own parameters; it receives them as `shared`."""
    hints = get_type_hints(SharedOptions, include_extras=True)
    own = inspect.signature(command, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name != "shared"]
    for field in dataclasses.fields(SharedOptions):
        default = [] if field.default is dataclasses.MISSING else field.default
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )

    def wrapper(**arguments: Any) -> None:
        names = [field.name for field in dataclasses.fields(SharedOptions)]
        shared = SharedOptions(**{name: arguments.pop(name) for name in names})
        command(**arguments, shared=shared)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    # Typer reads the signature and the annotations, so the function wears the merged ones.
    vars(wrapper)["__signature__"] = inspect.Signature(keyword_only)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper
