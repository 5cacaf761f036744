"""The report of a batch is complete and safe, and works in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import GREY
from PIL import Image

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>.png"
# What a person does: drag a slider, press keys, click a filter, look for a name. The findings go into the title.
VISITOR = """
<script>
window.addEventListener("load", () => {
  const seen = {}, cards = () => document.querySelectorAll("#grid article");
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  seen.all = cards().length;
  seen.pairs = document.querySelectorAll(".pair").length;
  const slider = document.querySelector(".pair input"), pair = slider.parentElement;
  const left = () => getComputedStyle(pair.querySelector(".before")).clipPath;
  seen.half = left();
  slider.value = 80; slider.dispatchEvent(new Event("input"));
  seen.dragged = left();
  press("f");
  seen.failed = cards().length;
  seen.reason = document.querySelector(".reason").textContent;
  press("a"); press("s");
  const times = [...cards()].map((c) => parseFloat((c.querySelector(".facts").textContent.match(/([\\d.]+) s$/) || [0, 0])[1]));
  seen.slowest = times.every((t, i) => i === 0 || times[i - 1] >= t);
  press("a"); press("j");
  seen.focus = document.activeElement.type || document.activeElement.tagName;
  press("j");
  seen.moved = cards()[1].contains(document.activeElement);
  const find = document.getElementById("find");
  find.value = "b.png"; find.dispatchEvent(new Event("input"));
  seen.found = cards().length;
  seen.loaded = [...document.images].every((image) => image.src.startsWith("data:image/webp"));
  seen.named = [...document.querySelectorAll("input, button, select")].every((n) => n.getAttribute("aria-label") || n.textContent);
  document.title = JSON.stringify(seen);
});
</script>
"""  # noqa: E501


@pytest.fixture
def report(here, tmp_path: Path, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a report on three good pictures, a broken one, and one with a hostile name."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.jpg", "b.png", "c.webp"):
        photograph.save(Path("in", name))
    Path("in", "broken.png").write_bytes(b"no")
    rows = [{"input": f"in/{path.name}", "output": path.name} for path in sorted(Path("in").iterdir())]
    rows.append({"input": "in/a.jpg", "output": "d.png", "preset": GREY, "prompt": HOSTILE, "strength": 1})
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = here("batch", "jobs.jsonl", "-o", "out", "--preset", "colorize", "--report", "report.html", *QUICK)
    assert done.code == 3, done.err
    return Path("report.html")


def read_data(page: str) -> dict:
    found = re.search(r"const data = (\{.*\});\n", page)
    assert found
    return json.loads(found[1])


def test_every_input_has_a_row_and_every_result_its_pair(report: Path) -> None:
    data = read_data(report.read_text())
    assert data["counts"] == {"done": 4, "up-to-date": 0, "failed": 1, "skipped": 0}
    assert len(data["rows"]) == 5
    for row in data["rows"]:
        assert (row["before"] is None) == (row["status"] == "failed")
        assert ("reason" in row) == (row["status"] == "failed")
    assert {"colorize", GREY} <= set(data["presets"])


def test_the_page_needs_no_network_and_names_cannot_break_out(report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"https?://|src=\"(?!data:)|url\(", page)
    assert HOSTILE not in page
    assert page.count("</script>") == 1
    assert HOSTILE in {row["prompt"] for row in read_data(page)["rows"]}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_person_can_use_it_with_mouse_and_keyboard(report: Path, tmp_path: Path) -> None:
    page = report.read_text()
    visited = tmp_path / "visited.html"
    visited.write_text(page.replace("</body>", VISITOR + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", visited.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", dumped.stdout, re.DOTALL)
    assert title, dumped.stderr
    seen = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["all"] == 5
    assert seen["pairs"] == 4
    assert seen["half"] == "inset(0px 50% 0px 0px)"
    assert seen["dragged"] == "inset(0px 20% 0px 0px)"
    assert seen["failed"] == 1
    assert "broken.png" in seen["reason"]
    assert seen["slowest"]
    assert seen["focus"] == "range"
    assert seen["moved"]
    assert seen["found"] == 1
    assert seen["loaded"]
    assert seen["named"]
