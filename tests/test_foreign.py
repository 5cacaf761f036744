"""Records in other tools' pictures: each tool's format, and which of its parameters become options here."""

from __future__ import annotations

import gzip
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import encode, make_picture
from PIL import ExifTags, Image, PngImagePlugin
from test_values import NASTY, parse

from img2img_cli.errors import InputError
from img2img_cli.pictures.files.exif_text import decode_comment
from img2img_cli.presets.samplers import SAMPLERS, find_sampler
from img2img_cli.presets.schema import Parameters
from img2img_cli.tasks.foreign.fields import Foreign
from img2img_cli.tasks.foreign.read import read_origin, read_texts
from img2img_cli.tasks.foreign.replay import plan_replay
from img2img_cli.tasks.foreign.stealth import read_stealth

COMMENT, EXIF = ExifTags.Base.UserComment, ExifTags.IFD.Exif
SECONDS = 5

WEB_UI = """a castle on a hill, (storm:1.2) <lora:Fog_v2:0.6>
second line
Negative prompt: blurry,
low quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Denoising strength: 0.45, \
Lora hashes: "Fog_v2: 1a2b3c4d5e6f, x: y", Version: v1.10.1"""
GRAPH: dict[str, Any] = {
    "3": {
        "inputs": {
            **{"seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
            **{"denoise": 0.7, "model": ["10", 0], "positive": ["12", 0], "negative": ["12", 1]},
            "latent_image": ["5", 0],
        },
        "class_type": "KSampler",
        "_meta": {"title": "KSampler"},
    },
    "4": {"inputs": {"ckpt_name": "sd15/dreamshaper_8.safetensors"}, "class_type": "CheckpointLoaderSimple"},
    "5": {"inputs": {"width": 512, "height": 640, "batch_size": 1}, "class_type": "EmptyLatentImage"},
    "6": {"inputs": {"text": "a bottle of stars", "clip": ["10", 1]}, "class_type": "CLIPTextEncode"},
    "7": {"inputs": {"text": ["13", 0], "clip": ["10", 1]}, "class_type": "CLIPTextEncode"},
    "8": {"inputs": {"samples": ["3", 0], "vae": ["4", 2]}, "class_type": "VAEDecode"},
    "9": {"inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}, "class_type": "SaveImage"},
    "10": {
        "inputs": {"lora_name": "fog.safetensors", "strength_model": 0.8, "model": ["11", 0], "clip": ["11", 1]},
        "class_type": "LoraLoader",
    },
    "11": {
        "inputs": {"lora_name": "ink.safetensors", "strength_model": 1, "model": ["4", 0], "clip": ["4", 1]},
        "class_type": "LoraLoader",
    },
    "12": {
        "inputs": {"strength": 1, "positive": ["6", 0], "negative": ["7", 0], "control_net": ["14", 0]},
        "class_type": "ControlNetApplyAdvanced",
    },
    "13": {"inputs": {"value": "text, watermark"}, "class_type": "PrimitiveString"},
    "14": {"inputs": {"control_net_name": "canny.safetensors"}, "class_type": "ControlNetLoader"},
}
FLUX: dict[str, Any] = {
    "6": {"inputs": {"text": "a fox", "clip": ["11", 0]}, "class_type": "CLIPTextEncode"},
    "8": {"inputs": {"samples": ["13", 0], "vae": ["10", 0]}, "class_type": "VAEDecode"},
    "9": {"inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}, "class_type": "SaveImage"},
    "10": {"inputs": {"vae_name": "ae.safetensors"}, "class_type": "VAELoader"},
    "11": {"inputs": {"clip_name1": "t5xxl_fp16.safetensors", "type": "flux"}, "class_type": "DualCLIPLoader"},
    "12": {"inputs": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}, "class_type": "UNETLoader"},
    "13": {
        "inputs": {
            **{"noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "sigmas": ["17", 0]},
            "latent_image": ["27", 0],
        },
        "class_type": "SamplerCustomAdvanced",
    },
    "16": {"inputs": {"sampler_name": "euler"}, "class_type": "KSamplerSelect"},
    "17": {
        "inputs": {"scheduler": "simple", "steps": 24, "denoise": 1.0, "model": ["12", 0]},
        "class_type": "BasicScheduler",
    },
    "22": {"inputs": {"model": ["12", 0], "conditioning": ["26", 0]}, "class_type": "BasicGuider"},
    "25": {"inputs": {"noise_seed": 219670278}, "class_type": "RandomNoise"},
    "26": {"inputs": {"guidance": 3.5, "conditioning": ["6", 0]}, "class_type": "FluxGuidance"},
    "27": {"inputs": {"width": 1024, "height": 1024, "batch_size": 1}, "class_type": "EmptySD3LatentImage"},
}
EDITED: dict[str, Any] = {
    "last_node_id": 9,
    "last_link_id": 9,
    "nodes": [
        {
            **{"id": 7, "type": "CLIPTextEncode", "mode": 0, "widgets_values": ["text, watermark"]},
            "inputs": [{"name": "clip", "type": "CLIP", "link": 5}],
        },
        {
            **{"id": 6, "type": "CLIPTextEncode", "mode": 0, "widgets_values": ["a purple galaxy bottle"]},
            "inputs": [{"name": "clip", "type": "CLIP", "link": 3}],
        },
        {"id": 5, "type": "EmptyLatentImage", "mode": 0, "inputs": [], "widgets_values": [512, 512, 1]},
        {
            **{"id": 3, "type": "KSampler", "mode": 0},
            "inputs": [
                {"name": "model", "type": "MODEL", "link": 1},
                {"name": "positive", "type": "CONDITIONING", "link": 4},
                {"name": "negative", "type": "CONDITIONING", "link": 6},
                {"name": "latent_image", "type": "LATENT", "link": 2},
            ],
            "widgets_values": [4242, "randomize", 22, 7.5, "euler_ancestral", "normal", 1],
        },
        {
            **{"id": 8, "type": "VAEDecode", "mode": 0, "widgets_values": []},
            "inputs": [{"name": "samples", "type": "LATENT", "link": 7}, {"name": "vae", "type": "VAE", "link": 8}],
        },
        {
            **{"id": 9, "type": "SaveImage", "mode": 0, "widgets_values": ["ComfyUI"]},
            "inputs": [{"name": "images", "type": "IMAGE", "link": 9}],
        },
        {"id": 4, "type": "CheckpointLoaderSimple", "mode": 0, "widgets_values": ["sd_xl_base_1.0.safetensors"]},
    ],
    "links": [
        *(
            [1, 4, 0, 3, 0, "MODEL"],
            [2, 5, 0, 3, 3, "LATENT"],
            [3, 4, 1, 6, 0, "CLIP"],
            [4, 6, 0, 3, 1, "CONDITIONING"],
        ),
        *([5, 4, 1, 7, 0, "CLIP"], [6, 7, 0, 3, 2, "CONDITIONING"], [7, 3, 0, 8, 0, "LATENT"], [8, 4, 2, 8, 1, "VAE"]),
        [9, 8, 0, 9, 0, "IMAGE"],
    ],
    "version": 0.4,
}
INVOKE: dict[str, Any] = {
    **{"generation_mode": "sdxl_img2img", "positive_prompt": "a red barn", "negative_prompt": "people"},
    **{"width": 1024, "height": 832, "seed": 3735928559, "rand_device": "cpu", "cfg_scale": 5.5, "steps": 31},
    **{"scheduler": "dpmpp_2m_k", "strength": 0.55, "app_version": "5.4.2"},
    "model": {
        **{"key": "1a2b", "hash": "blake3:00ff", "name": "Juggernaut XL v9", "base": "sdxl", "type": "main"},
    },
    "loras": [{"model": {"key": "9f", "name": "Ink lines", "base": "sdxl", "type": "lora"}, "weight": 0.75}],
}
INVOKE_2 = {
    **{"model": "stable diffusion", "model_weights": "stable-diffusion-1.5", "app_id": "invoke-ai/InvokeAI"},
    "image": {
        "prompt": [{"prompt": "a red barn [people, cars]", "weight": 1.0}],
        **{"steps": 50, "cfg_scale": 7.5, "height": 512, "width": 768, "seed": 42, "sampler": "k_lms"},
        **{"seamless": False, "type": "txt2img", "variations": [], "postprocessing": None},
    },
}
DREAM = '"a red barn [people]" -s 50 -S 42 -W 768 -H 512 -C 7.5 -A k_euler_a'
NOVEL = {
    **{"prompt": "1girl, castle", "steps": 28, "height": 1216, "width": 832, "scale": 5.0, "uncond_scale": 1.0},
    **{"seed": 2787236112, "n_samples": 1, "noise_schedule": "karras", "sampler": "k_euler_ancestral"},
    **{"uc": "lowres, bad anatomy", "request_type": "PromptGenerateRequest", "signed_hash": "x+/="},
}
NOVEL_4 = NOVEL | {
    "v4_prompt": {
        "caption": {
            "base_caption": "1girl, castle",
            "char_captions": [{"char_caption": "red hair", "centers": [{"x": 0.5, "y": 0.5}]}],
        },
        **{"use_coords": True, "use_order": True},
    },
    "v4_negative_prompt": {"caption": {"base_caption": "lowres, bad anatomy", "char_captions": [{"char_caption": ""}]}},
}
NOVEL_TEXTS = {
    **{"Title": "NovelAI generated image", "Description": "1girl, castle", "Software": "NovelAI"},
    **{"Source": "Stable Diffusion XL C1E1DA64", "Generation time": "2.5", "Comment": json.dumps(NOVEL)},
}
SWARM = {
    "sui_image_params": {
        **{"prompt": "a fox", "negativeprompt": "dog", "model": "Flux/flux1-dev-fp8", "seed": 7, "steps": 25},
        **{"cfgscale": 1.0, "width": 512, "height": 768, "sampler": "euler", "scheduler": "normal"},
        **{"loras": ["fog"], "loraweights": ["0.5"], "swarm_version": "0.9.1.1"},
    },
    "sui_extra_data": {"date": "2024-08-07"},
}
FOOOCUS = {
    **{"adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "juggernautXL_v8Rundiffusion", "guidance_scale": 4},
    **{"loras": [["sd_xl_offset", 0.1, "485"]], "metadata_scheme": "fooocus", "negative_prompt": "ugly"},
    **{"prompt": "a boat", "resolution": "(896, 1152)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras"},
    **{"seed": "123", "steps": 30, "version": "Fooocus v2.5.5"},
}
EASY = {
    **{"prompt": "a boat", "negative_prompt": "ugly", "seed": "9", "num_inference_steps": "25", "guidance_scale": "7"},
    **{"use_stable_diffusion_model": "sd-v1-5", "sampler_name": "euler_a", "width": "512", "height": "512"},
}
TEXTS: dict[str, dict[str, str]] = {
    "web ui": {"parameters": WEB_UI},
    "comfy": {"prompt": json.dumps(GRAPH), "workflow": "{}"},
    "comfy flux": {"prompt": json.dumps(FLUX)},
    "comfy workflow": {"workflow": json.dumps(EDITED)},
    "invoke": {"invokeai_metadata": json.dumps(INVOKE)},
    "invoke 2": {"sd-metadata": json.dumps(INVOKE_2), "Dream": DREAM},
    "dream": {"Dream": DREAM},
    "novel": NOVEL_TEXTS,
    "novel 4": NOVEL_TEXTS | {"Source": "NovelAI Diffusion V4 37442FCA", "Comment": json.dumps(NOVEL_4)},
    "swarm": {"parameters": json.dumps(SWARM)},
    "fooocus": {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
    "easy": EASY,
}
WANTED: dict[str, dict[str, Any]] = {
    "web ui": {
        **{"tool": "AUTOMATIC1111", "prompt": "a castle on a hill, (storm:1.2)\nsecond line", "seed": 1234567890},
        **{"negative_prompt": "blurry,\nlow quality", "num_inference_steps": 20, "guidance_scale": 6.5},
        **{"sampler": "DPM++ 2M", "schedule": "Karras", "model": "v1-5-pruned-emaonly", "width": 512, "height": 768},
        **{"strength": 0.45, "lora": ["Fog_v2:0.6"], "text": WEB_UI},
        "other": {
            **{"Model hash": "6ce0161689", "Lora hashes": "Fog_v2: 1a2b3c4d5e6f, x: y", "Version": "v1.10.1"},
        },
    },
    "comfy": {
        **{"tool": "ComfyUI", "prompt": "a bottle of stars", "negative_prompt": "text, watermark", "strength": 0.7},
        **{"seed": 156680208700286, "num_inference_steps": 20, "guidance_scale": 8.0, "sampler": "dpmpp_2m"},
        **{"schedule": "karras", "model": "dreamshaper_8.safetensors", "width": 512, "height": 640},
        **{"lora": ["ink.safetensors:1", "fog.safetensors:0.8"]},
        "other": {"nodes": "ControlNetApplyAdvanced, ControlNetLoader"},
    },
    "comfy flux": {
        **{"tool": "ComfyUI", "prompt": "a fox", "seed": 219670278, "num_inference_steps": 24, "guidance_scale": 3.5},
        **{"strength": 1.0, "sampler": "euler", "schedule": "simple", "model": "flux1-dev.safetensors"},
        **{"width": 1024, "height": 1024},
    },
    "comfy workflow": {
        **{"tool": "ComfyUI", "prompt": "a purple galaxy bottle", "negative_prompt": "text, watermark", "seed": 4242},
        **{"num_inference_steps": 22, "guidance_scale": 7.5, "strength": 1.0, "sampler": "euler_ancestral"},
        **{"schedule": "normal", "model": "sd_xl_base_1.0.safetensors", "width": 512, "height": 512},
    },
    "invoke": {
        **{"tool": "InvokeAI", "prompt": "a red barn", "negative_prompt": "people", "seed": 3735928559},
        **{"num_inference_steps": 31, "guidance_scale": 5.5, "strength": 0.55, "sampler": "dpmpp_2m_k"},
        **{"model": "Juggernaut XL v9", "family": "sdxl", "width": 1024, "height": 832, "lora": ["Ink lines:0.75"]},
        "other": {"generation_mode": "sdxl_img2img", "rand_device": "cpu", "app_version": "5.4.2"},
    },
    "invoke 2": {
        **{"tool": "InvokeAI", "prompt": "a red barn", "negative_prompt": "people, cars", "seed": 42},
        **{"num_inference_steps": 50, "guidance_scale": 7.5, "sampler": "k_lms", "model": "stable-diffusion-1.5"},
        **{"width": 768, "height": 512},
        "other": {"app_id": "invoke-ai/InvokeAI", "seamless": "False", "type": "txt2img"},
    },
    "dream": {
        **{"tool": "InvokeAI", "prompt": "a red barn", "negative_prompt": "people", "seed": 42, "width": 768},
        **{"num_inference_steps": 50, "guidance_scale": 7.5, "sampler": "k_euler_a", "height": 512},
    },
    "novel": {
        **{"tool": "NovelAI", "prompt": "1girl, castle", "negative_prompt": "lowres, bad anatomy", "seed": 2787236112},
        **{"num_inference_steps": 28, "guidance_scale": 5.0, "sampler": "k_euler_ancestral", "schedule": "karras"},
        **{"model": "Stable Diffusion XL C1E1DA64", "family": "Stable Diffusion XL C1E1DA64"},
        **{"width": 832, "height": 1216},
    },
    "novel 4": {"prompt": "1girl, castle, red hair", "negative_prompt": "lowres, bad anatomy", "seed": 2787236112},
    "swarm": {
        **{"tool": "SwarmUI", "prompt": "a fox", "negative_prompt": "dog", "seed": 7, "num_inference_steps": 25},
        **{"guidance_scale": 1.0, "sampler": "euler", "schedule": "normal", "model": "flux1-dev-fp8", "width": 512},
        **{"height": 768, "lora": ["fog:0.5"]},
    },
    "fooocus": {
        **{"tool": "Fooocus", "prompt": "a boat", "negative_prompt": "ugly", "seed": 123, "num_inference_steps": 30},
        **{"guidance_scale": 4.0, "sampler": "dpmpp_2m_sde_gpu", "schedule": "karras", "width": 896, "height": 1152},
        **{"model": "juggernautXL_v8Rundiffusion", "lora": ["sd_xl_offset:0.1"]},
    },
    "easy": {
        **{"tool": "Easy Diffusion", "prompt": "a boat", "negative_prompt": "ugly", "seed": 9, "width": 512},
        **{"num_inference_steps": 25, "guidance_scale": 7.0, "sampler": "euler_a", "model": "sd-v1-5", "height": 512},
    },
}


def as_png(texts: dict[str, str], *, behind: bool = False, image: Image.Image | None = None) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add(b"tEXt", f"{key}\0{text}".encode("latin-1"), after_idat=behind)
    return encode(image or make_picture("coffee", (64, 48)), "PNG", pnginfo=info)


def read(folder: Path, content: bytes, name: str = "a.png") -> Foreign:
    (folder / name).write_bytes(content)
    found = read_origin(str(folder / name))
    assert isinstance(found, Foreign)
    return found


# --- each tool's form


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("case", TEXTS)
def test_each_tools_texts_are_read_as_fields(tmp_path: Path, case: str, behind: bool) -> None:
    told = read(tmp_path, as_png(TEXTS[case], behind=behind)).to_json()
    for key, value in WANTED[case].items():
        assert told[key] == value, key
    assert case == "novel 4" or told.keys() - {"notes", "text", "other"} == WANTED[case].keys() - {"text", "other"}


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "AVIF", "TIFF"])
def test_parameters_in_exif_are_read(tmp_path: Path, format_: str) -> None:
    for case in ("web ui", "swarm", "fooocus"):
        exif = Image.Exif()
        exif.get_ifd(EXIF)[COMMENT] = b"UNICODE\0" + TEXTS[case]["parameters"].encode("utf-16-be")
        found = read(tmp_path, encode(make_picture("coffee", (64, 48)), format_, exif=exif.tobytes()))
        assert found == read_texts(TEXTS[case])


def test_comfyui_writes_webp_as_a_cameras_make_and_model(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = f"prompt:{json.dumps(GRAPH)}"
    exif[ExifTags.Base.Make] = "workflow:{}"
    found = read(tmp_path, encode(make_picture("coffee", (64, 48)), "WEBP", exif=exif))
    assert found == read_texts(TEXTS["comfy"])


def test_a_gif_tells_in_its_comment(tmp_path: Path) -> None:
    found = read(tmp_path, encode(make_picture("coffee", (64, 48)), "GIF", comment=WEB_UI.encode()))
    assert found == read_texts(TEXTS["web ui"])


# --- hidden in pixels


def hide(texts: str, bands: str, *, packed: bool, size: tuple[int, int] = (120, 100)) -> Image.Image:
    """Hide a text in the pixels as the web UI's extension does, bit by bit."""
    content = gzip.compress(texts.encode()) if packed else texts.encode()
    name = f"stealth_{'png' if bands == 'A' else 'rgb'}{'comp' if packed else 'info'}".encode()
    data = name + (len(content) * 8).to_bytes(4) + content
    bits = iter([int(bit) for byte in data for bit in f"{byte:08b}"])
    image = make_picture("coffee", size).convert("RGBA" if bands == "A" else "RGB")
    pixels = image.load()
    assert pixels is not None
    for x in range(image.width):
        for y in range(image.height):
            values: list[int] = list(pixels[x, y])  # type: ignore[arg-type]
            for band in [3] if bands == "A" else [0, 1, 2]:
                if (bit := next(bits, None)) is not None:
                    values[band] = values[band] & 254 | bit
            pixels[x, y] = tuple(values)
    assert next(bits, None) is None
    return image


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bands", ["A", "RGB"])
def test_parameters_in_the_lowest_bits_are_read(tmp_path: Path, bands: str, packed: bool) -> None:
    image = hide(WEB_UI, bands, packed=packed)
    assert read(tmp_path, encode(image, "PNG")) == read_texts(TEXTS["web ui"])
    assert read(tmp_path, encode(image, "WEBP", lossless=True, exact=True), "a.webp") == read_texts(TEXTS["web ui"])


def test_novelais_hidden_texts_are_its_open_ones(tmp_path: Path) -> None:
    image = hide(json.dumps(NOVEL_TEXTS), "A", packed=True)
    assert read(tmp_path, encode(image, "PNG")) == read_texts(NOVEL_TEXTS)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(bytes(300 << 20), 9)[:60_000],
        gzip.compress(b"x" * (8 << 20)),
        gzip.compress(WEB_UI.encode())[:-20],
        b"no gzip",
        b"",
    ],
    ids=["bomb", "long", "cut", "none", "empty"],
)
def test_hidden_bits_that_unpack_to_nothing_sound_are_ignored(content: bytes) -> None:
    for length in (len(content) * 8, 0, 7, 2**32 - 1):
        data = b"stealth_pngcomp" + length.to_bytes(4) + content
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        alpha = np.full(1000 * (len(bits) // 1000 + 1), 255, np.uint8)
        alpha[: len(bits)] = 254 + bits
        image = Image.new("RGB", (len(alpha) // 1000, 1000))
        image.putalpha(Image.fromarray(alpha.reshape(-1, 1000).T))
        assert read_stealth(image) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (64, 48)])
def test_ordinary_pictures_hide_nothing(mode: str, size: tuple[int, int]) -> None:
    image = make_picture("noise", (64, 48)).resize(size)
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    assert read_stealth(image) is None


# --- what is none


@pytest.mark.parametrize(
    "text", ["Screenshot", "Steps to the beach: 20", "Negative", "{}", "[1, 2]", '{"a": 1}', "CREATOR: gd-jpeg v1.0"]
)
def test_what_people_and_screenshots_say_is_no_parameters(here, tmp_path: Path, text: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF)[COMMENT] = b"ASCII\0\0\0" + text.encode()
    for content in (
        encode(make_picture("coffee", (64, 48)), "JPEG", exif=exif),
        encode(make_picture("coffee", (64, 48)), "JPEG", comment=text.encode()),
        as_png({"Comment": text, "Title": text, "Software": "gnome-screenshot"}),
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(InputError, match="carries no parameters"):
            read_origin(str(tmp_path / "a"))
    assert here("info", tmp_path / "a").code == 3


def test_parameters_that_are_unknown_json_are_shown_as_they_stand() -> None:
    found = read_texts({"parameters": '{"a": 1, "b": [1, 2]}'})
    assert found is not None
    assert found.prompt is None
    assert dict(found.other) == {"a": "1", "b": "list of 2"}


# --- UserComment's encodings

WORDS = [
    "a castle",
    WEB_UI,
    "ein Schloß für Käthe",
    "城",
    "城の上の空、嵐",
    "замок на холме",
    "\U0001f3f0 castle",
    "x",
]


@pytest.mark.parametrize("text", WORDS, ids=range(len(WORDS)))
@pytest.mark.parametrize(
    "write",
    [
        lambda text: b"UNICODE\0" + text.encode("utf-16-be"),
        lambda text: b"UNICODE\0" + text.encode("utf-16-le"),
        lambda text: b"UNICODE\0" + b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: b"UNICODE\0" + b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: b"UNICODE\0" + text.encode() + bytes(8),
        lambda text: b"UNICODE\0" + b"\xef\xbb\xbf" + text.encode(),
        lambda text: b"ASCII\0\0\0" + text.encode(),
        lambda text: bytes(8) + text.encode() + b"  ",
        lambda text: text.encode(),
        lambda text: text,
    ],
    ids=["be", "le", "le mark", "be mark", "utf-8", "utf-8 mark", "ascii", "undefined", "bare", "str"],
)
def test_user_comments_are_read_in_every_encoding(text: str, write: Callable[[str], Any]) -> None:
    value = write(text)
    for little_endian in (False, True):
        if value[:8] == b"UNICODE\0" and len(text) == 1 and b"\xff" not in value and b"\xfe" not in value:
            little_endian = value[8:10] == text.encode("utf-16-le")  # nothing else tells
        assert decode_comment(value, little_endian=little_endian) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"ASCII\0\0\0" + "Schloß für Käthe".encode("cp1252"), "Schloß für Käthe"),
        (b"JIS\0\0\0\0\0" + "城の上の空".encode("iso2022_jp"), "城の上の空"),
        (b"ASCII\0\0\0" + bytes(40), ""),
        (b"UNICODE\0" + b"   ", ""),
        (None, ""),
    ],
)
def test_user_comments_in_older_encodings_are_read(value: object, text: str) -> None:
    assert decode_comment(value, little_endian=True) == text


@given(st.binary(max_size=40) | st.integers() | st.none())
@settings(deadline=None, max_examples=100)
def test_any_user_comment_is_some_text(value: Any) -> None:
    for prefix in (b"", b"UNICODE\0", b"JIS\0\0\0\0\0", b"ASCII\0\0\0"):
        decode_comment(prefix + value if isinstance(value, bytes) else value).encode()


# --- as a command


def parse_command(command: str) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return parse(shlex.split(command)[1:], monkeypatch)


@pytest.mark.parametrize(
    ("case", "preset", "wanted", "notes"),
    [
        (
            "web ui",
            "sd15-edit",
            {
                **{"strength": 0.45, "num_inference_steps": 20, "guidance_scale": 6.5},
                **{"scheduler": "DPMSolverMultistepScheduler", "scheduler_config": {"use_karras_sigmas": True}},
                "negative_prompt": "blurry,\nlow quality",
            },
            ["Fog_v2", "v1-5-pruned-emaonly", "Lora hashes"],
        ),
        (
            "comfy",
            "sd15-edit",
            {"strength": 0.7, "guidance_scale": 8.0},
            ["156680208700286", "nodes ControlNetApplyAdvanced", "dreamshaper_8"],
        ),
        (
            "comfy flux",
            "flux-dev",
            {"guidance_scale": 3.5, "scheduler": "EulerDiscreteScheduler"},
            ["text alone"],
        ),
        ("comfy workflow", "sdxl-edit", {"scheduler": "EulerAncestralDiscreteScheduler"}, ["sd_xl_base_1.0"]),
        ("invoke", "sdxl-edit", {"strength": 0.55, "num_inference_steps": 31}, ["Ink lines", "Juggernaut"]),
        ("invoke 2", "sd15-edit", {"scheduler": "LMSDiscreteScheduler", "negative_prompt": "people, cars"}, []),
        ("dream", "sd15-edit", {"scheduler": "EulerAncestralDiscreteScheduler"}, ["family is unknown"]),
        ("novel", "sdxl-edit", {"scheduler": "EulerAncestralDiscreteScheduler"}, ["NovelAI's models"]),
        ("novel 4", "sdxl-edit", {"prompt": "1girl, castle, red hair"}, ["characters"]),
        ("swarm", "flux-dev", {"num_inference_steps": 25}, ["fog"]),
        (
            "fooocus",
            "sdxl-edit",
            {"scheduler_config": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}},
            [],
        ),
        ("easy", "sd15-edit", {"guidance_scale": 7.0}, []),
    ],
)
def test_what_can_be_said_is_a_command_and_what_cannot_is_told(
    case: str, preset: str, wanted: dict[str, Any], notes: list[str]
) -> None:
    found = read_texts(TEXTS[case])
    assert found is not None
    replay = plan_replay(found, "a b.png")
    assert replay.command is not None
    assert len(replay.command.splitlines()) == 1
    job = parse_command(replay.command)
    told = job.parameters.to_record()
    assert (job.input, job.preset) == ("a b.png", preset)
    assert job.seed == (found.seed if found.seed is not None and found.seed < 2**32 else 0)
    for key, value in ({"prompt": found.prompt} | wanted).items():
        assert told[key] == value, key
    for word in notes:
        assert any(word in note for note in replay.notes), word
    for note in replay.notes:
        assert len(note.splitlines()) == 1


def test_our_own_text_without_the_record_is_a_command_too() -> None:
    from img2img_cli.tasks.job import Job
    from img2img_cli.tasks.record import format_parameters

    parameters = Parameters(prompt="fog", strength=0.5, num_inference_steps=8)
    job = Job(input="a.png", output="b.png", preset="edit", parameters=parameters, seed=5)
    found = read_texts({"parameters": format_parameters(job, (64, 48))})
    assert found is not None
    replay = plan_replay(found, "a.png")
    assert replay.command is not None
    again = parse_command(replay.command)
    assert (again.preset, again.seed, again.parameters.strength) == ("edit", 5, 0.5)


def test_what_has_no_counterpart_is_told() -> None:
    settings = "Steps: 0, Sampler: DPM++ 3M SDE, Schedule type: Beta, CFG scale: 70, Seed: -1, Denoising strength: 2"
    found = read_texts({"parameters": f"fog\n{settings}"})
    assert found is not None
    replay = plan_replay(found, "a.png")
    assert replay.command == "img2img edit a.png --preset sd15-edit --prompt fog"
    for word in ("num_inference_steps: 0", "3M SDE", "Beta", "guidance_scale: 70.0", "seed: -1"):
        assert any(word in note for note in replay.notes), word


def test_without_a_prompt_there_is_no_command(here, tmp_path: Path) -> None:
    graph = {"1": {"class_type": "Odd", "inputs": {}}}
    (tmp_path / "a.png").write_bytes(as_png({"prompt": json.dumps(graph)}))
    done = here("info", tmp_path / "a.png")
    assert done.code == 0
    assert b"no prompt was found" in done.out
    assert b"command:" not in done.out
    told = json.loads(here("info", tmp_path / "a.png", "--json").out)
    assert told["command"] is None
    assert told["other"] == {"nodes": "Odd"}


@pytest.mark.parametrize("case", TEXTS)
def test_info_tells_fields_notes_and_command(here, tmp_path: Path, case: str) -> None:
    (tmp_path / "a.png").write_bytes(as_png(TEXTS[case]))
    done = here("info", tmp_path / "a.png")
    assert done.code == 0, done.err
    lines = done.out.decode().splitlines()
    assert lines[-1].startswith("command: img2img edit ")
    assert lines[0] == ("a castle on a hill, (storm:1.2) <lora:Fog_v2:0.6>" if case == "web ui" else lines[0])
    assert case == "web ui" or lines[0] == f"tool: {WANTED[case].get('tool', 'NovelAI')}"
    assert any(line.startswith("note: ") for line in lines)
    told = json.loads(here("info", tmp_path / "a.png", "--json").out)
    assert told["command"] == lines[-1].removeprefix("command: ")
    assert told["notes"] == [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["Euler a", "euler_ancestral", "k_euler_ancestral", "k_euler_a", "euler_a"], "Euler a"),
        (["DPM++ 2M", "dpmpp_2m", "k_dpmpp_2m", "dpmpp_2m_k", "DPM++ 2M Karras"], "DPM++ 2M"),
        (["DPM++ SDE", "dpmpp_sde", "k_dpmpp_sde", "dpmpp_sde_gpu"], "DPM++ SDE"),
        (["kdpm_2_a", "DPM2 a", "dpm_2_ancestral", "k_dpm_2_a"], "DPM2 a"),
        (["uni_pc", "UniPC", "unipc"], "UniPC"),
        (["PLMS", "pndm"], "PLMS"),
        (["ddim", "ddim_v3", "DDIM"], "DDIM"),
    ],
)
def test_samplers_have_many_names(names: list[str], wanted: str) -> None:
    for name in names:
        found = find_sampler(name, "karras")
        assert found is not None, name
        assert found[0] == SAMPLERS[wanted][0]
        assert found == find_sampler(wanted, "karras")
    assert find_sampler("dpmpp_3m_sde") is None
    assert find_sampler("") is None


# --- whatever somebody has written


def in_time(began: float) -> None:
    assert time.process_time() - began < SECONDS


def deep(depth: int = 100_000) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    "text", [deep(), deep(900), "[" * 100_000, "{" * 1000, '{"seed": ' + "9" * 100_000 + "}", '"\\ud800"', "\ud800", ""]
)
def test_deep_and_broken_json_is_no_parameters(text: str) -> None:
    began = time.process_time()
    for key in ("prompt", "workflow", "invokeai_metadata", "sd-metadata", "Comment", "UserComment", "parameters"):
        found = read_texts({key: text, "Software": "NovelAI"})
        if found is not None:
            json.dumps(found.to_json())
            plan_replay(found, "a.png")
    in_time(began)


def circle(count: int) -> dict[str, Any]:
    """Return nodes of every known kind, each linked to all kinds of nodes, including itself."""
    kinds = ["KSampler", "LoraLoader", "CLIPTextEncode", "SaveImage", "KSamplerSelect", "EmptyLatentImage", "Odd"]
    keys = [
        "model",
        "positive",
        "negative",
        "latent_image",
        "text",
        "seed",
        "steps",
        "noise",
        "guider",
        "sigmas",
        "value",
    ]
    nodes = {}
    for index in range(count):
        links = {key: [str((index * 7 + place) % count), 0] for place, key in enumerate(keys)}
        nodes[str(index)] = {"class_type": kinds[index % len(kinds)], "inputs": links}
    return nodes


@pytest.mark.parametrize("count", [1, 2, 7, 5000])
def test_graphs_that_go_in_circles_come_to_an_end(count: int) -> None:
    began = time.process_time()
    found = read_texts({"prompt": json.dumps(circle(count))})
    assert found is not None
    assert found.seed is None
    in_time(began)


@pytest.mark.parametrize(
    "part",
    ["\n", " ", "Steps: 1", 'a:"', "a: ", "a:b", "<lora:", "[", "(", "\\", ",", '"', "Negative prompt:\n", "<lora:a:"],
)
def test_long_texts_of_parameters_are_read_once(part: str) -> None:
    """A reader that searched for each end again would take hours for some of these."""
    began = time.process_time()
    text = part * (2_000_000 // len(part))
    for content in (text, f"x\nSteps: 1, {text}", f"{text}\nSteps: 1, a: b"):
        read_texts({"parameters": content})
    read_texts({"Dream": text[: 1 << 16]})
    in_time(began)


def test_compressed_text_that_grows_too_large_is_refused_in_a_line(here, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "[" * (64 << 20), zip=True)
    (tmp_path / "a.png").write_bytes(encode(make_picture("coffee", (64, 48)), "PNG", pnginfo=info))
    done = here("info", tmp_path / "a.png")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1


JUNK = [
    *NASTY,
    None,
    True,
    0,
    -1,
    2**64,
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    ["3", 0],
    {"a": {}},
]


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths to all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from list_places(inner, (*place, key))


def spoil(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = spoil(copy[place[0]], place[1:], junk)
    return copy


SPOILT = {
    "prompt": GRAPH,
    "prompt ": FLUX,
    "workflow": EDITED,
    "invokeai_metadata": INVOKE,
    "sd-metadata": INVOKE_2,
    "Comment": NOVEL_4,
    "parameters": SWARM,
    "parameters ": FOOOCUS,
}


@pytest.mark.slow
@settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_spoilt_fields_are_told_or_left_out(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(SPOILT)))
    value: Any = SPOILT[key]
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(list_places(value))
        if places:
            value = spoil(value, data.draw(st.sampled_from(places)), data.draw(st.sampled_from(JUNK)))
    found = read_texts({key.strip(): json.dumps(value), "Software": "NovelAI"})
    if found is None:
        return
    json.dumps(found.to_json()).encode()
    replay = plan_replay(found, "-a.png")
    assert all(len(note) < 3000 for note in replay.notes)
    if replay.command is not None:
        assert len(replay.command.splitlines()) == 1
        if "$'" not in replay.command:
            job = parse_command(replay.command)
            assert job.input == "./-a.png"
            assert job.parameters.prompt == found.prompt
