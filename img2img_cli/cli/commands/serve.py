"""`img2img serve`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from img2img_cli.cli.options import DeviceOption, OffloadOption, QuietOption

_TCP, _RUN = "Over TCP", "Run"


def serve(
    *,
    preset: Annotated[list[str], typer.Option(help="Load it at once, and offer it to web clients; repeatable.")] = [],  # noqa: B006 - typer copies it
    keep: Annotated[str, typer.Option(metavar="TIME", help="Unload models that nobody used so long.")] = "15m",
    end_idle: Annotated[bool, typer.Option("--end-idle", help="End when nobody asked for anything so long.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the server that is running.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Tell as JSON what the running server does.")] = False,
    host: Annotated[
        Optional[str],
        typer.Option(help="Serve web clients on this address too.", rich_help_panel=_TCP, show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_TCP)] = 7860,
    token: Annotated[
        Optional[str],
        typer.Option(
            envvar="IMG2IMG_TOKEN",
            help="What web clients must send. Others see it in the list of processes, so better set the variable.",
            rich_help_panel=_TCP,
            show_default="a fresh one, told on stderr",
        ),
    ] = None,
    request_timeout: Annotated[
        str,
        typer.Option(metavar="TIME", help="Give up a web client's request that takes longer.", rich_help_panel=_TCP),
    ] = "30m",
    device: DeviceOption = "auto",
    offload: OffloadOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Keep models warm: commands run at once, and OpenAI's and the web UI's clients can use them."""
    from img2img_cli.cli.serve_run import end_server, run_server, tell_status

    if stop:
        end_server()
    elif status:
        tell_status()
    else:
        run_server(
            presets=preset,
            keep=keep,
            ends_idle=end_idle,
            host=host,
            port=port,
            token=token,
            request_timeout=request_timeout,
            device=device,
            offload=offload,
            quiet=quiet,
        )
