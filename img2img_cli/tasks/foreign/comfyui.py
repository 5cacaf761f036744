"""Read the parameters in ComfyUI graphs from the sampler nearest to the result and the nodes that lead to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from img2img_cli.tasks.foreign.fields import (
    MAX_LORAS,
    Foreign,
    read_json,
    show_others,
    to_float,
    to_int,
    to_name,
    to_size,
    to_text,
)

MAX_NODES = 10_000
MAX_HOPS = 50  # the most links followed to find a value
# The order of the unnamed values in the nodes of the editor's format; "" marks a value that is not used.
_WIDGETS: dict[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CLIPTextEncodeSDXL": (*("",) * 6, "text_g", "text_l"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "LoraLoader": ("lora_name", "strength_model"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "LoadImage": ("image",),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
}
# Nodes that are read in full, or that have no parameters to report.
_KNOWN = frozenset(
    {
        *_WIDGETS,
        "BasicGuider",
        "CLIPLoader",
        "CLIPSetLastLayer",
        "ConditioningZeroOut",
        "DualCLIPLoader",
        "MarkdownNote",
        "Note",
        "PreviewImage",
        "Reroute",
        "SamplerCustomAdvanced",
        "SaveAnimatedWEBP",
        "SaveImage",
        "TripleCLIPLoader",
        "VAEDecode",
        "VAEEncode",
        "VAELoader",
    }
)
_TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "string", "string_a", "string_b", "value")
_TEXT_ENDS = ("populated_text", "text_a", "text_b", "text1", "text2")
_PRIMITIVES = ("value", "int", "float", "number", "seed", "noise_seed", "text", "string")
_NO_TEXT = frozenset({"clip", "model", "vae", "image", "pixels", "control_net", "style_model", "samples", "latent"})
_PARTS = ("noise", "guider", "sampler", "sigmas")  # inputs of a sampler that is assembled from other nodes


@dataclass(frozen=True)
class Link:
    """A reference to the output of another node, in place of a value.

    Attributes:
        node: the key of that node.
    """

    node: str


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        kind: the class of the node.
        inputs: values or links by name.
    """

    kind: str
    inputs: dict[str, Any] = field(default_factory=dict)


def read_comfyui(texts: Mapping[str, str]) -> Foreign | None:
    """Read parameters from the executed graph, `prompt`, or else from the editor's graph, `workflow`.

    Returns:
        None if the texts hold no graph.
    """
    nodes = _read_run(read_json(texts.get("prompt"))) or _read_edited(read_json(texts.get("workflow")))
    return _Graph(nodes).tell() if nodes else None


def _read_run(graph: object) -> dict[str, Node]:
    """Return the nodes of an executed graph, `{id: {class_type, inputs}}`."""
    nodes: dict[str, Node] = {}
    for key, entry in list(graph.items())[:MAX_NODES] if isinstance(graph, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("class_type"), str):
            inputs = entry.get("inputs")
            named = inputs.items() if isinstance(inputs, dict) else ()
            nodes[key] = Node(entry["class_type"], {name: _to_link(value) for name, value in named})
    return nodes


def _to_link(value: object) -> object:
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return Link(str(value[0])) if is_link and type(value[1]) is int else value  # type: ignore[index]


def _read_edited(graph: object) -> dict[str, Node]:
    """Return the nodes of an editor's graph, `{nodes: [...], links: [...]}`, in which values have no names."""
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        return {}
    links = graph.get("links")
    origins = dict(filter(None, map(_read_edge, links if isinstance(links, list) else ())))
    nodes: dict[str, Node] = {}
    for entry in graph["nodes"][:MAX_NODES]:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or entry.get("mode") in (2, 4):
            continue  # muted or bypassed
        values, named = entry.get("widgets_values"), _WIDGETS.get(entry["type"], ())
        inputs = dict(values) if isinstance(values, dict) else {}
        if isinstance(values, list):
            inputs = {name: value for name, value in zip(named, values, strict=False) if name}
        sockets = entry.get("inputs")
        for socket in sockets if isinstance(sockets, list) else ():
            if isinstance(socket, dict) and (origin := origins.get(str(socket.get("link")))):
                inputs[str(socket.get("name"))] = Link(origin)
        nodes[str(entry.get("id"))] = Node(entry["type"], inputs)
    return nodes


def _read_edge(edge: object) -> tuple[str, str] | None:
    """Return the ID of an edge and of the node that it starts from, or None for anything else."""
    if isinstance(edge, dict):
        return str(edge.get("id")), str(edge.get("origin_id"))
    return (str(edge[0]), str(edge[1])) if isinstance(edge, list) and len(edge) > 1 else None


class _Graph:
    """A graph of nodes. Its edges may be invalid or form cycles, so each walk visits a node at most once."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def tell(self) -> Foreign:
        """Return the parameters that made the result, as far as the nodes are known."""
        others = sorted({node.kind for node in self._nodes.values()} - _KNOWN)
        other = {"nodes": ", ".join(others)}
        samplers = self._find_samplers()
        if not samplers:
            note = "its graph has no sampler that is known here"
            return Foreign(tool="ComfyUI", other=show_others(other.items()), notes=(note,))
        inputs = self._gather_inputs(samplers[0])
        notes = [f"its graph has {len(samplers)} samplers; this is what the last one did"] if len(samplers) > 1 else []
        positive = inputs.get("positive", inputs.get("conditioning"))
        models, loras = self._follow_model(inputs.get("model"))
        latent = list(self._walk(inputs.get("latent_image", inputs.get("latent"))))
        sources = [to_name(node.inputs.get("image")) for node in latent if node.kind.startswith("LoadImage")]
        guidance = [to_float(node.inputs.get("guidance")) for node in self._walk(positive)]
        cfg = to_float(self._take(inputs.get("cfg")))
        return Foreign(
            tool="ComfyUI",
            prompt=self._join_texts(positive, "positive"),
            negative_prompt=self._join_texts(inputs.get("negative"), "negative") or None,
            seed=to_int(self._take(inputs.get("seed", inputs.get("noise_seed")))),
            num_inference_steps=to_int(self._take(inputs.get("steps"))),
            guidance_scale=next((value for value in guidance if value is not None), cfg),
            strength=to_float(self._take(inputs.get("denoise"))),
            sampler=to_text(self._take(inputs.get("sampler_name"))),
            schedule=to_text(self._take(inputs.get("scheduler"))),
            model=next(iter(models), None),
            size=next(filter(None, map(self._take_size, latent)), None),
            lora=tuple(loras[:MAX_LORAS]),
            other=show_others([*other.items(), *(("input", source) for source in sources)]),
            notes=tuple(notes),
        )

    def _find_samplers(self) -> list[Node]:
        """Return the samplers, the one nearest to a saved result first."""
        ends = [key for key, node in self._nodes.items() if "Save" in node.kind]
        ends += [key for key, node in self._nodes.items() if "Preview" in node.kind]
        near = [*self._walk(*map(Link, ends)), *self._nodes.values()]
        once = list({id(node): node for node in near}.values())
        return [node for node in once if _is_core_sampler(node)] or [node for node in once if _is_sampler(node)]

    def _gather_inputs(self, sampler: Node) -> dict[str, Any]:
        """Return the inputs of a sampler together with those of the nodes that it is assembled from."""
        inputs = dict(sampler.inputs)
        for part in _PARTS:
            for node in self._walk(sampler.inputs.get(part), keys=_PARTS):
                for key, value in node.inputs.items():
                    inputs.setdefault(key, value)
        return inputs

    def _walk(self, *starts: object, keys: Iterable[str] | None = None) -> Iterator[Node]:
        """Yield the nodes that lead to these links, the nearest first.

        Args:
            keys: the names of the inputs to follow; None for all.
        """
        waiting, seen = list(starts), set[str]()
        for link in waiting:  # the loop appends to this list
            if not isinstance(link, Link) or link.node in seen or link.node not in self._nodes:
                continue
            seen.add(link.node)
            node = self._nodes[link.node]
            yield node
            waiting += [value for key, value in node.inputs.items() if keys is None or key in keys]

    def _take(self, value: object) -> object:
        """Return a value, following links to the node that holds it; None if no value is found."""
        for _ in range(MAX_HOPS):
            if not isinstance(value, Link):
                return value
            node = self._nodes.get(value.node, Node(""))
            value = next((node.inputs[key] for key in _PRIMITIVES if key in node.inputs), None)
        return None

    def _take_size(self, node: Node) -> tuple[int, int] | None:
        """Return the size in pixels of a node that creates an empty latent, including loaders that create one."""
        prefix = "empty_latent_" if "empty_latent_width" in node.inputs else ""
        width, height = (self._take(node.inputs.get(prefix + side)) for side in ("width", "height"))
        return to_size(width, height) if "Encode" not in node.kind else None

    def _join_texts(self, start: object, side: str) -> str | None:
        """Join the texts that form a conditioning, each once, with commas; return None if there are none.

        Args:
            side: `positive` or `negative`, the input to follow at nodes that have both.
        """
        if isinstance(start, str):
            return to_text(start)
        found: dict[str, None] = {}
        waiting, seen = [start], set[str]()
        while waiting:
            link = waiting.pop()
            if isinstance(link, str):
                found.update({text: None for text in [to_text(link)] if text})
            if not isinstance(link, Link) or link.node in seen or link.node not in self._nodes:
                continue
            seen.add(link.node)
            node = self._nodes[link.node]
            if node.kind != "ConditioningZeroOut":
                waiting += reversed(_choose_texts(node, side))
        return ", ".join(found) or None

    def _follow_model(self, start: object) -> tuple[list[str], list[str]]:
        """Return the names of the checkpoints, the nearest first, and of the LoRAs as `NAME:SCALE`, in order of use."""
        models: list[str] = []
        loras: list[str] = []
        for node in self._walk(start, keys=("model", "lora_stack", "base_model")):
            names = (self._take(node.inputs.get(key)) for key in ("ckpt_name", "unet_name", "model_name"))
            models += filter(None, map(to_name, names))
            loras += filter(None, map(_tell_lora, _list_loras(node)))
        return models, loras[::-1]


def _is_core_sampler(node: Node) -> bool:
    return node.kind.startswith(("KSampler", "SamplerCustom")) and node.kind != "KSamplerSelect"


def _is_sampler(node: Node) -> bool:
    """Return whether an unknown node has the inputs of a sampler."""
    has_noise = {"seed", "noise_seed", "noise"} & node.inputs.keys()
    return bool(has_noise) and bool({"steps", "sigmas"} & node.inputs.keys()) and "positive" in node.inputs


def _choose_texts(node: Node, side: str) -> list[object]:
    """Return the texts of a node or the links to them; if there are none, the other links that may lead to texts."""
    own = [node.inputs[key] for key in (*_TEXTS, *_TEXT_ENDS) if isinstance(node.inputs.get(key), str | Link)]
    own += [node.inputs[side]] if isinstance(node.inputs.get(side), str) else []
    if own:
        return own
    links = {key: value for key, value in node.inputs.items() if isinstance(value, Link) and key not in _NO_TEXT}
    sides = links.keys() & {"positive", "negative"}
    return [value for key, value in links.items() if key not in sides or key == side]


def _list_loras(node: Node) -> list[tuple[object, object]]:
    """Return the files and scales of a node with one LoRA, or with several that can be switched off."""
    several = [value for key, value in node.inputs.items() if key.lower().startswith("lora_")]
    switched_on = [value for value in several if isinstance(value, dict) and value.get("on")]
    pairs = [(value.get("lora"), value.get("strength")) for value in switched_on]
    if "lora_name" in node.inputs:
        pairs.append((node.inputs["lora_name"], node.inputs.get("strength_model")))
    return pairs[::-1]


def _tell_lora(pair: tuple[object, object]) -> str | None:
    name, scale = to_name(pair[0]), to_float(pair[1])
    return f"{name}:{1 if scale is None else scale:g}" if name and name != "None" else None
