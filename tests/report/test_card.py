"""Model cards, and what is sent to a hub: to a small one that this test is."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import finetune_words, pretrain_words, run_cli

from nota_seg.cli import main
from nota_seg.report.card import model_card, published


@pytest.fixture(scope="module")
def run(scenes: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning from a pre-training."""
    folder = tmp_path_factory.mktemp("runs")
    assert run_cli(*pretrain_words(shapes, folder / "encoder")).returncode == 0
    words = finetune_words(scenes, folder / "run", "--pretrain", str(folder / "encoder" / "best"))
    assert run_cli(*words).returncode == 0
    return folder / "run"


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_what_a_reader_must_know(run: Path, tmp_path: Path) -> None:
    card = {"id": "cpu-1", "processor": "Some CPU", "threads": 1}
    latency = {"card": card, "measurements": [{"runtime": "eager", "size": [64, 64], "batch_size": 1, "p50": 12.34}]}
    (run / "latency-cpu-1.json").write_text(json.dumps(latency))
    text = model_card(run, size=(64, 64))
    (run / "latency-cpu-1.json").unlink()
    facts = front_matter(text)
    scores = json.loads((run / "eval.json").read_text())
    result = facts["model-index"][0]["results"][0]
    assert facts["library_name"] == "transformers" and facts["pipeline_tag"] == "image-segmentation"
    assert result["metrics"][0] == {"type": "mean_iou", "name": "mIoU", "value": round(scores["miou"], 4)}
    for part in (
        f"| mIoU | {100 * scores['miou']:.2f} |", "mode whole", "GMACs at 64x64", "p50 12.3 ms on cpu-1", "Some CPU",
        "nota-seg finetune", "nota-seg pretrain", "Fine-tuned on", "Pre-trained on", "random weights",
        "No published weights were used",
    ):  # fmt: skip
        assert part in text, part
    assert str(run.parent) not in text  # where things lay is nobody's business
    assert "license" not in facts


def test_a_run_that_was_not_evaluated_still_segments(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval.*", "checkpoint-*"))
    card = model_card(tmp_path / "run")
    assert "\nSemantic segmentation: `segformer-b0`" in card and "Not evaluated." in card


def test_the_snippet_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    code = model_card(run, size=(64, 64)).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run / "best")
    Image.new("RGB", (64, 48)).save(tmp_path / "street.jpg")
    code = code.replace('"street.jpg"', repr(str(tmp_path / "street.jpg")))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["labels"].ndim == 3


@pytest.mark.parametrize(
    ("name", "words", "licence"),
    [
        ("mit_b2.pth", "no commercial use", "nvidia-source-code-license-for-segformer"),
        ("segformer.b0.512x512.ade.160k.pth", "no commercial use", "nvidia-source-code-license-for-segformer"),
        ("mscan_t.pth", "Apache-2.0", None),
        ("weights.pth", "not known here", None),
    ],
)
def test_licences_of_published_weights(name: str, words: str, licence: str | None) -> None:
    found = published(Path("/nowhere") / name)
    assert found.note is not None and words in found.note and found.licence == licence


def test_a_renamed_file_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    state = {"patch_embed1.proj.weight": torch.zeros(4, 3, 7, 7), "block1.0.attn.q.weight": torch.zeros(4, 4),
             "block1.0.attn.sr.weight": torch.zeros(4, 4, 8, 8), "patch_embed1.norm.weight": torch.zeros(4),
             "block1.0.mlp.dwconv.dwconv.weight": torch.zeros(4, 1, 3, 3)}  # fmt: skip
    torch.save(state, tmp_path / "mine.pth")
    found = published(tmp_path / "mine.pth")
    assert found.published == "mine.pth (NVlabs SegFormer)" and found.licence


def test_report_writes_and_overwrites_only_when_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--size", "64"]) == 0
    assert (run / "README.md").read_text().startswith("---\n")
    assert main(["report", str(run), "--size", "64"]) == 2
    assert main(["report", str(run), "--size", "64", "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--size", "64", "--output", "-"]) == 0
    assert capsys.readouterr().out == (run / "README.md").read_text()
    (run / "README.md").unlink()


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a push needs."""

    repos: dict[str, dict[str, bytes]] = {}
    token = "right"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.answer({"error": "no"}, 401)
        url = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            sent = json.loads(body)
            name = "/".join(part for part in (sent.get("organization"), sent["name"]) if part)
            self.repos.setdefault(name, {})
            return self.answer({"url": f"{url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo, _, action = self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if action == "preupload":
            files = json.loads(body)["files"]
            answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": answer})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{url}/{repo}/commit/abc", "commitOid": "abc"})
        return self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self.answer({}, 404)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.repos.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def push(run: Path, hub: str, *more: str, token: str = "right") -> Any:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    return run_cli("push", str(run), "me/small", *more, env=environment)


def test_a_push_arrives_whole(run: Path, hub: str) -> None:
    done = push(run, hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub}/me/small/commit/abc"
    sent = Hub.repos["me/small"]
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "eval.json"} <= sent.keys()
    assert sent["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert front_matter(sent["README.md"].decode())["library_name"] == "transformers"
    assert not any("checkpoint" in name or name == "run.json" for name in sent)


def test_a_wrong_token_is_one_line(run: Path, hub: str) -> None:
    done = push(run, hub, token="wrong")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: the hub refused (401)")


def test_no_hub_is_one_line(run: Path) -> None:
    done = push(run, "http://127.0.0.1:9")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_dry_run_needs_no_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/small", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "me/small/model.safetensors" in out and "me/small/README.md" in out
    assert main(["push", str(run), "small", "--dry-run"]) == 2
    assert main(["push", str(run), "me/sm all", "--dry-run"]) == 2
