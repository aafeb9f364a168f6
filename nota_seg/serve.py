"""A local page: drop a picture, see what one or two models make of it, where they disagree, and what they cost.

Nothing leaves the machine: no analytics, no share link, fonts of the system, and a policy that forbids the page to
fetch anything from elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nota_seg.flops import cost
from nota_seg.inference import Protocol, evaluating, predict_labels, protocol_for, to_pixels
from nota_seg.models.loading import load_model
from util.errors import InputError
from util.palettes import colourise, legend, overlay, palette

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob: ws: wss:; "
    "frame-ancestors 'self'"
)
DIFFERENT = (255, 0, 255)


@dataclass
class Candidate:
    """A model of the page.

    Attributes:
        name: What it is called there.
        model: In evaluation mode.
        class_names: In the order of its classes.
        protocol: How a picture becomes a label map.
        cost: As `nota_seg.flops.cost`, at 512x512; None where it cannot be counted.
    """

    name: str
    model: nn.Module
    class_names: list[str]
    protocol: Protocol
    cost: dict[str, Any] | None

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str) -> Candidate:
        model, class_names = load_model(path, "cpu")
        try:
            price = cost(model, (512, 512))
        except (RuntimeError, ValueError):  # a model of another library with an operator that nobody counts
            price = None
        folder = Path(path)
        name = folder.parent.name if folder.name in ("best", "last") else folder.name
        candidate = cls(name or str(path), model.to(device), class_names, protocol_for(model), price)
        candidate.label(np.zeros((64, 64, 3), dtype=np.uint8))  # the first run is slow, and would be shown
        return candidate

    def label(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Labels (H, W) of a picture (H, W, 3) uint8, and the seconds that took."""
        device = next(self.model.parameters()).device
        start = time.perf_counter()
        with evaluating(self.model):
            pixels = to_pixels(image, self.protocol.base_size)[None].to(device)
            height, width = image.shape[:2]
            label = predict_labels(self.model, pixels, (height, width), self.protocol)[0].cpu().numpy()
        return label, time.perf_counter() - start


def look(candidates: Sequence[Candidate], image: np.ndarray, alpha: float = 0.5) -> tuple[list[np.ndarray], str]:
    """What the page shows of a picture.

    Args:
        candidates: One or two.
        image: (H, W, 3) uint8.
        alpha: Opacity of the classes over the picture.

    Returns:
        Overlay and label map of each in turn, of two also where they differ; and a table in Markdown.
    """
    # Classes of the same name have the same colour and are the same thing, whatever their numbers.
    names = list(dict.fromkeys(name for c in candidates for name in c.class_names))
    place = {name: i for i, name in enumerate(names)}
    colours = palette(len(names))
    pictures, labels, rows = [], [], []
    for candidate in candidates:
        own, seconds = candidate.label(image)
        label = np.array([place[name] for name in candidate.class_names])[own]
        labels.append(label)
        shown = np.unique(label)
        pictures.append(overlay(image, label, colours, alpha))
        pictures.append(legend(colourise(label, colours), shown, names, colours))
        price = candidate.cost
        numbers = f"{price['params'] / 1e6:.3f} M | {price['macs'] / 1e9:.2f} G" if price else "- | -"
        rows.append(f"| {candidate.name} | {numbers} | {1000 * seconds:.0f} ms | {len(shown)} |")
    head = ["| model | params | MACs, 512x512 | time, once | classes |", "|---|---|---|---|---|"]
    lines = [*head, *rows]
    if len(labels) == 2:
        different = labels[0] != labels[1]
        grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6 + 80
        pictures.append(np.where(different[..., None], DIFFERENT, grey.clip(0, 255)).astype(np.uint8))
        lines += ["", f"They differ on {100 * different.mean():.1f}% of the pixels."]
    return pictures, "\n".join(lines)


def require_gradio() -> Any:
    """gradio, told to stay at home, or one line that says how to get it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio
    except ImportError:
        raise InputError("serve needs gradio: pip install 'nota-seg[serve]'") from None
    return gradio


def build(candidates: Sequence[Candidate]) -> Any:
    """The page, as gradio's `Blocks`; its one function is `/look`."""
    gr = require_gradio()

    def show(image: np.ndarray | None, alpha: float) -> list[Any]:
        if image is None:
            return [None] * outputs + [""]
        pictures, table = look(candidates, np.ascontiguousarray(image[..., :3]), alpha)
        return [*pictures, table]

    outputs = 2 * len(candidates) + (len(candidates) == 2)
    with gr.Blocks(title="nota-seg", analytics_enabled=False) as page:
        gr.Markdown("# " + " and ".join(c.name for c in candidates))
        with gr.Row():
            picture = gr.Image(label="picture", type="numpy", sources=["upload", "clipboard"], image_mode="RGB")
            with gr.Column():
                alpha = gr.Slider(0, 1, 0.5, label="opacity of the classes")
                table = gr.Markdown()
        panes = []
        shown = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}  # and none that shares
        with gr.Row():
            for candidate in candidates:
                with gr.Column():
                    for what in ("overlay", "labels"):
                        panes.append(gr.Image(label=f"{candidate.name}: {what}", **shown))
        if len(candidates) == 2:
            panes.append(gr.Image(label="where they differ", **shown))
        picture.change(show, [picture, alpha], [*panes, table], api_name="look")
        alpha.release(show, [picture, alpha], [*panes, table], api_name=False)
    return page


def _middleware() -> Any:
    """Every answer carries the policy: whatever gradio's own page names, a browser fetches nothing from elsewhere."""
    from starlette.middleware import Middleware

    class StayAtHome:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                    message = {**message, "headers": headers}
                await send(message)

            await self.app(scope, receive, send_with_policy)

    return Middleware(StayAtHome)


def launch(page: Any, *, port: int | None = None, host: str = "127.0.0.1", block: bool = True) -> str:
    """Serve a page on this machine; returns its address at once where it does not `block`.

    Raises:
        InputError: The port is taken.
    """
    gr = require_gradio()
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(font=fonts[0], font_mono=fonts[1])  # the default theme's own come from a font server
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            theme=theme, app_kwargs={"middleware": [_middleware()]},
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"port {port or 'of the page'} cannot be used ({error}): give another by --port") from None
    if block:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return str(address)
