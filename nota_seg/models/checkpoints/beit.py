"""BEiT: unilm's names (classification, self-supervised, and with UPerNet), mmseg's, transformers'; and back to mmseg's.

What a file leaves open is resolved here: a table shared by all layers is copied to each, tables and absolute positions
for another window are resized as published, and every key of the file is accounted for in the report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nota_seg.models.checkpoints.format import Format, Rule, State, substitute
from nota_seg.models.checkpoints.heads import conv_norm, head_rules
from nota_seg.models.checkpoints.reading import read_state_dict
from nota_seg.models.checkpoints.report import TransferReport
from nota_seg.models.checkpoints.transfer import config_beside
from nota_seg.models.external.beit_config import PATCH
from nota_seg.models.external.beit_positions import (
    EXTRA,
    Window,
    relative_position_index,
    resize_positions,
    resize_table,
    table_rows,
)
from util.errors import InputError
from util.files import whole_file

if TYPE_CHECKING:
    from nota_seg.models.external.beit import BeitForSemanticSegmentation, BeitPreTrained

TABLE = "relative_position_bias.relative_position_bias_table"
SHARED = "encoder.shared_table"
POSITIONS = "encoder.embeddings.position_embeddings"
INDEX = "relative_position_index"

PREFIX = r"(?:backbone\.)?"
BLOCK = PREFIX + r"(?:blocks|layers)\.(\d+)\."
OURS = r"encoder.layers.\1."
AUXILIARY: list[Rule] = [
    *conv_norm(r"auxiliary_head\.convs\.0", "auxiliary.conv"),
    (r"auxiliary_head\.(?:conv_seg|classifier)\.(\w+)", r"auxiliary.classifier.\1"),
]
RULES: list[Rule] = [
    (PREFIX + r"cls_token", "encoder.embeddings.cls_token"),
    (PREFIX + r"pos_embed", POSITIONS),
    (PREFIX + r"patch_embed\.proj(?:ection)?\.(\w+)", r"encoder.embeddings.patch_embeddings.projection.\1"),
    (PREFIX + r"rel_pos_bias\.relative_position_bias_table", SHARED),
    (BLOCK + r"attn\.relative_position_bias_table", OURS + TABLE),
    (BLOCK + r"(?:norm|ln)1\.(\w+)", OURS + r"layernorm_before.\2"),
    (BLOCK + r"(?:norm|ln)2\.(\w+)", OURS + r"layernorm_after.\2"),
    (BLOCK + r"gamma_([12])", OURS + r"lambda_\2"),
    (BLOCK + r"attn\.([qv])_bias", OURS + r"attention.\2_proj.bias"),
    (BLOCK + r"attn\.qkv\.weight", OURS + r"attention.qkv.weight"),
    (BLOCK + r"attn\.proj\.(\w+)", OURS + r"attention.o_proj.\2"),
    (BLOCK + r"(?:mlp\.fc1|ffn\.layers\.0\.0)\.(\w+)", OURS + r"mlp.fc1.\2"),
    (BLOCK + r"(?:mlp\.fc2|ffn\.layers\.1)\.(\w+)", OURS + r"mlp.fc2.\2"),
    (r"(?:(?:backbone\.)?fpn1|neck\.upsample_4x)\.(\d)\.(\w+)", r"neck.up4.\1.\2"),
    (r"(?:(?:backbone\.)?fpn2|neck\.upsample_2x)\.(\d)\.(\w+)", r"neck.up2.\1.\2"),
    (PREFIX + r"fc_norm\.(\w+)", r"norm.\1"),
    (PREFIX + r"head\.(\w+)", r"classifier.\1"),
    *AUXILIARY,
]
HF = r"(?:beit\.)?"
HF_BLOCK = HF + r"(?:encoder\.layer|layers)\.(\d+)\."
BLOCK_0 = r"encoder\.layers\.0\.lambda_1"
FIRST, HF_FIRST = (block.replace(r"(\d+)", "0") for block in (BLOCK, HF_BLOCK))
HF_RULES: list[Rule] = [
    (HF + r"embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.\w+)", r"encoder.embeddings.\1"),
    (HF + r"(?:encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table", SHARED),
    (HF_BLOCK + r"(?:attention\.attention\.)?" + re.escape(TABLE), OURS + TABLE),
    (HF_BLOCK + r"(layernorm_(?:before|after)\.\w+|lambda_[12])", OURS + r"\2"),
    (HF_BLOCK + r"attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)", OURS + r"attention.\2_proj.\3"),
    (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(\w+)", OURS + r"attention.o_proj.\2"),
    (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", OURS + r"mlp.fc1.\2"),
    (HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(\w+)", OURS + r"mlp.fc2.\2"),
    (HF + r"pooler\.layernorm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"classifier.\1"),
    (r"fpn1\.(\d)\.(\w+)", r"neck.up4.\1.\2"),
    (r"fpn2\.(\d)\.(\w+)", r"neck.up2.\1.\2"),
    *AUXILIARY,
]
QKV = re.compile(r"(encoder\.layers\.\d+\.attention\.)qkv(\.weight)")
QKV_OF = re.compile(r"(encoder\.layers\.\d+\.attention\.)[qkv]_proj(\.weight)")
# Back to mmseg 1.x.
TO_MMSEG: list[Rule] = [
    (r"encoder\.embeddings\.cls_token", "backbone.cls_token"),
    (r"encoder\.embeddings\.position_embeddings", "backbone.pos_embed"),
    (r"encoder\.embeddings\.patch_embeddings\.projection\.(\w+)", r"backbone.patch_embed.projection.\1"),
    (r"encoder\.layers\.(\d+)\." + re.escape(TABLE), r"backbone.layers.\1.attn.relative_position_bias_table"),
    (r"encoder\.layers\.(\d+)\.layernorm_before\.(\w+)", r"backbone.layers.\1.ln1.\2"),
    (r"encoder\.layers\.(\d+)\.layernorm_after\.(\w+)", r"backbone.layers.\1.ln2.\2"),
    (r"encoder\.layers\.(\d+)\.lambda_([12])", r"backbone.layers.\1.gamma_\2"),
    (r"encoder\.layers\.(\d+)\.attention\.([qv])_proj\.bias", r"backbone.layers.\1.attn.\2_bias"),
    (r"encoder\.layers\.(\d+)\.attention\.o_proj\.(\w+)", r"backbone.layers.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)", r"backbone.layers.\1.ffn.layers.0.0.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)", r"backbone.layers.\1.ffn.layers.1.\2"),
    (r"neck\.up([24])\.(\d)\.(\w+)", r"neck.upsample_\1x.\2.\3"),
    (r"decoder\.pooling\.branches\.(\d)\.conv\.(\w+)", r"decode_head.psp_modules.\1.1.conv.\2"),
    (r"decoder\.pooling\.branches\.(\d)\.norm\.(\w+)", r"decode_head.psp_modules.\1.1.bn.\2"),
    (r"decoder\.pooling\.bottleneck\.conv\.(\w+)", r"decode_head.bottleneck.conv.\1"),
    (r"decoder\.pooling\.bottleneck\.norm\.(\w+)", r"decode_head.bottleneck.bn.\1"),
    (r"decoder\.laterals\.(\d)\.conv\.(\w+)", r"decode_head.lateral_convs.\1.conv.\2"),
    (r"decoder\.laterals\.(\d)\.norm\.(\w+)", r"decode_head.lateral_convs.\1.bn.\2"),
    (r"decoder\.smooths\.(\d)\.conv\.(\w+)", r"decode_head.fpn_convs.\1.conv.\2"),
    (r"decoder\.smooths\.(\d)\.norm\.(\w+)", r"decode_head.fpn_convs.\1.bn.\2"),
    (r"decoder\.fuse\.conv\.(\w+)", r"decode_head.fpn_bottleneck.conv.\1"),
    (r"decoder\.fuse\.norm\.(\w+)", r"decode_head.fpn_bottleneck.bn.\1"),
    (r"decoder\.classifier\.(\w+)", r"decode_head.conv_seg.\1"),
    (r"auxiliary\.conv\.conv\.(\w+)", r"auxiliary_head.convs.0.conv.\1"),
    (r"auxiliary\.conv\.norm\.(\w+)", r"auxiliary_head.convs.0.bn.\1"),
    (r"auxiliary\.classifier\.(\w+)", r"auxiliary_head.conv_seg.\1"),
]


def _has(*endings: str) -> Callable[[State], bool]:
    def matches(state: State) -> bool:
        return all(any(re.fullmatch(ending, k) for k in state) for ending in endings)

    return matches


def names_of(state: State, rules: list[Rule]) -> dict[str, str]:
    """Our name to the file's, of every key that has one."""
    named: Any = substitute({k: k for k in state}, [*rules, *head_rules(state)])  # type: ignore[misc]
    return {ours: theirs for ours, theirs in named.items() if ours != theirs or rules is OWN_RULES}


def split(state: State) -> State:
    """The projections of queries, keys and values, which are rows of one matrix in unilm and mmseg, by themselves."""
    result: State = {}
    for key, value in state.items():
        if match := QKV.fullmatch(key):
            result |= {f"{match[1]}{n}_proj{match[2]}": p for n, p in zip("qkv", value.chunk(3), strict=True)}
        else:
            result[key] = value
    return result


def _renaming(rules: list[Rule]) -> Callable[[State], State]:
    return lambda state: split({ours: state[theirs] for ours, theirs in names_of(state, rules).items()})


OWN_RULES: list[Rule] = []
PUBLISHED: list[tuple[Format, list[Rule]]] = [
    (
        Format("nota-seg BEiT", _has(r"encoder\.embeddings\.cls_token", BLOCK_0), _renaming(OWN_RULES)),
        OWN_RULES,
    ),
    (
        Format("BEiT of unilm or mmseg", _has(PREFIX + "cls_token", FIRST + r"attn\.q_bias"), _renaming(RULES)),
        RULES,
    ),
    (
        Format("transformers BEiT", _has(HF + r"embeddings\.cls_token", HF_FIRST + r"lambda_1"), _renaming(HF_RULES)),
        HF_RULES,
    ),
]
FORMATS = [published for published, _ in PUBLISHED]


def _recognised(path: str | Path) -> tuple[Format, State, dict[str, str]]:
    """The format, the file's tensors, and our names to its names."""
    state = read_state_dict(path)
    for published, rules in PUBLISHED:
        if published.matches(state):
            return published, state, names_of(state, rules)
    known = ", ".join(f.name for f in FORMATS)
    raise InputError(f"{path}: no BEiT weights (first keys {sorted(state)[:3]}); known: {known}")


def _saved_window(path: str | Path) -> Window | None:
    """The window in the config.json beside a weights file of ours."""
    file = config_beside(path)
    try:
        crop = json.loads(file.read_text(encoding="utf-8"))["crop_size"] if file else None
        return None if crop is None else (int(crop[0]) // PATCH, int(crop[1]) // PATCH)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _window(state: State, own: Window, saved: Window | None = None) -> Window | None:
    """The window of a file's tables: as its index or configuration says, else the model's own if that fits, else a
    square.

    Raises:
        InputError: The number of rows is that of no such window.
    """
    rows = next((len(v) for k, v in state.items() if k.endswith("relative_position_bias_table")), None)
    if rows is None:
        return None
    index = next((v for k, v in state.items() if k.endswith(INDEX) and v.ndim == 2), None)
    if index is not None and len(index) > 1:
        # Key by key the first query's offsets fall by one along a row of patches, and by more to the next row.
        steps = index[1, 1:].long().diff()
        breaks = (steps != -1).nonzero()
        columns = int(breaks[0]) + 1 if len(breaks) else len(index) - 1
        found = (len(index) - 1) // columns, columns
        if table_rows(found) == rows:
            return found
    for fitting in (saved, own):
        if fitting is not None and table_rows(fitting) == rows:
            return fitting
    side = round((rows - EXTRA) ** 0.5)
    if side * side == rows - EXTRA and side % 2:
        return (side + 1) // 2, (side + 1) // 2
    raise InputError(
        f"the position tables have {rows} rows, which is no square window: name the pixels that the weights are for, "
        "--set model.crop_size=[HEIGHT,WIDTH]"
    )


def settings(path: str | Path, chosen: Container[str]) -> dict[str, Any]:
    """What a model must be built with to hold all of a file: absolute positions, and with a whole segmentation model
    the crop that it was trained on, unless `chosen` says another. A pre-trained encoder is resized to the model."""
    _, state, named = _recognised(path)
    result: dict[str, Any] = {}
    if POSITIONS in named:
        result["absolute_positions"] = True
    if "crop_size" not in chosen and "decoder.classifier.weight" in named:
        window = _window(state, (0, 0), _saved_window(path))
        if window is not None:
            result["crop_size"] = [side * PATCH for side in window]
    return result


def load_beit(model: BeitPreTrained, path: str | Path, *, strict: bool = True) -> TransferReport:
    """Fill a BEiT model from any of its formats; it is changed only when everything that must fit does.

    Args:
        model: Of `external.beit`.
        path: See `read_state_dict`.
        strict: Stop where an encoder parameter is not in the file or has another shape, and where the file has blocks
            that the model has not. Position tables may be missing: they then start from zero, which is no bias.

    Raises:
        InputError: Not BEiT's, or (strict) of another size.
    """
    published, source, theirs = _recognised(path)
    target = dict(model.state_dict())
    report = TransferReport(str(path), published.name)
    renamed = split({ours: source[name] for ours, name in theirs.items()})
    theirs |= {k: theirs[QKV_OF.sub(r"\1qkv\2", k)] for k in renamed if k not in theirs}
    shared = renamed.pop(SHARED, None)
    if shared is not None:
        for i in range(model.config.depth):
            renamed.setdefault(f"encoder.layers.{i}.{TABLE}", shared)
            theirs.setdefault(f"encoder.layers.{i}.{TABLE}", theirs[SHARED])
    has_positions = model.config.absolute_positions
    if strict and POSITIONS in renamed and not has_positions:
        raise InputError(f"{path} has absolute positions and the model has not: --set model.absolute_positions=true")

    own = model.config.window
    window = _window(source, own, _saved_window(path))
    fitting: State = {}
    for key, value in renamed.items():
        was = value
        if key.endswith(TABLE) and window is not None and key in target:
            value = resize_table(value, window, own)
        elif key == POSITIONS and key in target:
            side = round((value.shape[1] - 1) ** 0.5)
            grid = window if window is not None and window[0] * window[1] == value.shape[1] - 1 else (side, side)
            value = resize_positions(value, grid, own) if grid[0] * grid[1] == value.shape[1] - 1 else value
        if key not in target or target[key].shape != value.shape:
            continue
        fitting[key] = value
        if value is not was:
            report.resized[key] = theirs[key]
        elif key == theirs[key]:
            report.matched.append(key)
        else:
            report.renamed[key] = theirs[key]
    used = {theirs[key] for key in fitting}
    report.unused = [name for name in source if name not in used]
    report.reinitialised = [k for k in target if k not in fitting and not k.endswith("num_batches_tracked")]
    parameters = {k: p.numel() for k, p in model.named_parameters()}
    for part in dict.fromkeys(k.split(".")[0] for k in parameters):
        sizes = {k: n for k, n in parameters.items() if k.startswith(part + ".")}
        report.per_stage[part] = 100 * sum(n for k, n in sizes.items() if k in fitting) / sum(sizes.values())

    absent = [k for k in report.reinitialised if k.startswith("encoder.") and not k.endswith(TABLE)]
    absent += [k for k in report.reinitialised if k.endswith(TABLE) and k in renamed]
    homeless = [k for k in renamed if re.match(r"encoder\.layers\.\d+\.", k) and k not in target]
    if strict and (absent or homeless):
        first = (absent or homeless)[0]
        have = f"{tuple(renamed[first].shape)} there" if first in renamed else "not there"
        wants = f"{tuple(target[first].shape)} in the model and {have}" if first in target else "only there"
        raise InputError(
            f"{path} ({published.name}): {len(absent) + len(homeless)} encoder weights do not fit "
            f"{model.config.zoo_name}; the first, {first}, is {wants}; these are weights of {_size(renamed)}"
        )
    with torch.no_grad():
        for key, value in fitting.items():
            target[key].copy_(value)
    return report


def _size(renamed: State) -> str:
    blocks = {m[1] for k in renamed if (m := re.match(r"encoder\.layers\.(\d+)\.", k))}
    token = renamed.get("encoder.embeddings.cls_token")
    return f"{len(blocks)} blocks of {token.shape[-1] if token is not None else '?'} channels"


def to_mmseg(model: BeitForSemanticSegmentation) -> State:
    """A model's tensors in the names of mmseg 1.x, with the index buffers that it keeps beside the tables."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    result: State = {}
    index = relative_position_index(model.config.window)
    for i in range(model.config.depth):
        parts = [state.pop(f"encoder.layers.{i}.attention.{n}_proj.weight") for n in "qkv"]
        result[f"backbone.layers.{i}.attn.qkv.weight"] = torch.cat(parts)
        result[f"backbone.layers.{i}.attn.{INDEX}"] = index
    result |= substitute(state, TO_MMSEG)
    foreign = [k for k in result if k in state]
    if foreign:
        raise InputError(
            f"mmseg has no name for {foreign[0]}: only UPerNet goes there, this is {model.config.zoo_name}"
        )
    return result


def save_mmseg(model: Any, path: str | Path) -> Path:
    """Write an mmseg checkpoint: `state_dict`, and the class names in `meta`.

    Raises:
        InputError: No BEiT segmentation model.
    """
    from nota_seg.models.external.beit import BeitForSemanticSegmentation

    if not isinstance(model, BeitForSemanticSegmentation):
        raise InputError(f"only BEiT segmentation models go to mmseg's names, this is {type(model).__name__}")
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    content: dict[str, Any] = {"meta": {"CLASSES": names}, "state_dict": to_mmseg(model)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        torch.save(content, file)
    return path
