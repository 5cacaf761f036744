"""The report of a run: curves and pictures over time in one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 640, 180
MOST_SAMPLES = 12  # pictures over time, evenly spread, so that the page can be mailed
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 860px; padding: 1rem 1.25rem 4rem; }
svg { width: 100%; border: 1px solid #8884; border-radius: .5rem; }
polyline { fill: none; stroke: #3b82f6; stroke-width: 2; }
text { font: 12px system-ui, sans-serif; fill: currentColor; }
img { max-width: 100%; }
"""
_CURVES = (
    ("psnr", "PSNR of the validation pairs, dB"),
    ("difference", "mean difference in training"),
    ("discriminator", "loss of the discriminator"),
)


def format_report(name: str, rows: Sequence[dict[str, Any]], samples: Sequence[Path]) -> str:
    """Return the page.

    Args:
        rows: those of `metrics.jsonl`.
        samples: JPEG files in the order of the steps, named `step-NUMBER.jpg`.
    """
    parts = [f"<h1>{html.escape(name)}</h1>"]
    validated = [row for row in rows if row.get("event") == "validated"]
    if validated:
        last = validated[-1]
        made, left = (f"{last[f'{who}psnr']:.2f} dB, SSIM {last[f'{who}ssim']:.4f}" for who in ("", "input_"))
        spent = f"{last['minutes']} minutes and {last['step']} steps"
        parts.append(f"<p>After {spent}: {made}; the inputs as they are: {left}.</p>")
    for key, title in _CURVES:
        points = [(float(row["minutes"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
        if len(points) > 1:
            parts.append(f"<h2>{title}</h2>{_draw_curve(points)}")
    shown = samples[:: max(1, -(-len(samples) // MOST_SAMPLES))]
    if samples and shown[-1] != samples[-1]:
        shown = [*shown, samples[-1]]
    for path in reversed(shown):
        data = base64.b64encode(path.read_bytes()).decode()
        step = int(path.stem.removeprefix("step-"))
        parts.append(f'<h2>Step {step}: input, made, wanted</h2><img alt="" src="data:image/jpeg;base64,{data}">')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _draw_curve(points: Sequence[tuple[float, float]]) -> str:
    """Return an SVG of values over minutes, with its least and largest value."""
    minutes, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    span, length = (high - low) or 1.0, (minutes[-1] - minutes[0]) or 1.0
    places = " ".join(
        f"{8 + (WIDTH - 16) * (at - minutes[0]) / length:.1f},{HEIGHT - 24 - (HEIGHT - 48) * (value - low) / span:.1f}"
        for at, value in points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><polyline points="{places}"/>'
        f'<text x="8" y="16">{high:.4g}</text><text x="8" y="{HEIGHT - 6}">{low:.4g}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{minutes[-1]:.4g} minutes</text></svg>'
    )
