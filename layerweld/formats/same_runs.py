"""Whether two runs made the same merge: to the bit, or up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layerweld.errors import DifferentMergeError, OutputError
from layerweld.formats.layer_patterns import LayerPatterns
from layerweld.formats.lora_config import CONFIG_FILE, read_lora_config, scaling
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.tensors import opened_tensors

TOLERANCE = 1e-3
_ANOTHER = "compare another copy"
_WRAPPED = "base_model.model."  # before the names of layers in PEFT's files
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_ENVIRONMENTS = "environment.json"


@dataclass(frozen=True)
class LayerDifference:
    """How far apart two merges of one layer are.

    Attributes:
        name: of the layer, or of the tensor of a whole model.
        relative: ‖one - other‖ / ‖other‖, in the Frobenius norm; 0 where the bits are equal.
        same_bits: whether they are.
    """

    name: str
    relative: float
    same_bits: bool


def layer_differences(one: Path, other: Path) -> list[LayerDifference]:
    """Differences of every layer between two output folders, merged adapters or merged models.

    Factors are compared by their product: a compressed merge may have another basis.

    Raises:
        OutputError: a folder holds no merge, or the merges have different layers or shapes.
    """
    ours, theirs = _merge_in(one), _merge_in(other)
    apart = sorted(ours.keys() ^ theirs.keys())
    if apart:
        raise OutputError(
            f"only one of {one} and {other} has {apart[0]}; compare runs of the same sites"
        )
    found = []
    for name in sorted(ours):
        if [t.shape for t in (ours[name][0], ours[name][-1])] != [
            t.shape for t in (theirs[name][0], theirs[name][-1])
        ]:
            raise OutputError(f"{name} has another shape in {one} than in {other}")
        found.append(_difference(name, ours[name], theirs[name]))
    return found


def require_within(found: list[LayerDifference], tolerance: float) -> None:
    """Refuse merges that differ by more than rounding explains.

    Raises:
        DifferentMergeError: a layer differs by more, or holds a number that is not finite.
    """
    worst = max(found, key=_size)
    if not worst.relative <= tolerance:
        raise DifferentMergeError(
            f"{worst.name} differs by {worst.relative:.2g} of its size; {tolerance:g} is allowed"
        )


def environment_differences(one: Path, other: Path) -> Iterator[str]:
    """How the machines of two runs' output folders differ, a line for each entry."""
    ours, theirs = _environments(one), _environments(other)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name}: {ours.get(name, 'not set')} and {theirs.get(name, 'not set')}"


def _size(difference: LayerDifference) -> float:
    return difference.relative if difference.relative == difference.relative else float("inf")


def _difference(name: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> LayerDifference:
    pairs = list(zip(ours, theirs, strict=True))
    if all(a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs):
        return LayerDifference(name, 0.0, same_bits=True)
    if len(ours) == 1:
        apart, size = (ours[0].double() - theirs[0].double()).norm(), theirs[0].double().norm()
    else:
        (left, right), (other_left, other_right) = ours, theirs
        apart = _norm(torch.cat([left, -other_left], 1), torch.cat([right, other_right], 0))
        size = _norm(other_left, other_right)
    return LayerDifference(name, float(apart / size) if apart else 0.0, same_bits=False)


def _norm(left: Tensor, right: Tensor) -> Tensor:
    """‖left · right‖ without the product, from the triangular factors of both."""
    upper = torch.linalg.qr(left.double(), mode="r").R
    lower = torch.linalg.qr(right.double().T, mode="r").R
    size: Tensor = torch.linalg.matrix_norm(upper @ lower.T)
    return size


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _merge_in(folder: Path) -> dict[str, tuple[Tensor, ...]]:
    """Tensors by layer: ``B`` with its scaling, and ``A``; or one whole weight."""
    for inner in (folder / "adapter", folder / "model", folder):
        files = sorted(inner.glob("*.safetensors"))
        if files:
            break
    else:
        raise OutputError(f"{folder} holds no merged adapter or model; name a run's output folder")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with opened_tensors(file, _ANOTHER, OutputError) as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if not tensors:
        raise OutputError(f"{inner} holds no tensor; compare another copy")
    if (inner / "adapter_config.json").is_file():
        return _factored(inner, tensors)
    return {name: (tensor,) for name, tensor in tensors.items()}


def _factored(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    config = read_lora_config(folder)
    patterns = LayerPatterns(folder / CONFIG_FILE, config)
    first, second = _FACTORS

    def scaled(layer: str) -> Tensor:
        name = layer.removeprefix(_WRAPPED)
        factor = scaling(config, patterns.alpha(name), patterns.rank(name))
        return factor * tensors[layer + second]

    layers = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    others = {name for name in tensors if not name.endswith(_FACTORS)}
    try:
        return {layer: (scaled(layer), tensors[layer + first]) for layer in layers} | {
            name: (tensors[name],) for name in others
        }
    except KeyError as error:
        raise OutputError(f"{folder} lacks {error.args[0]}; compare another copy") from None


def _environments(folder: Path) -> dict[str, str]:
    """The environments of the coordinator and each site, by name; empty if the folder has none.

    Raises:
        OutputError: the file is damaged.
    """
    file = folder / _ENVIRONMENTS
    if not file.is_file():
        return {}
    about = read_json(file, OutputError, _ANOTHER)
    with reading(f"{file} is damaged", _ANOTHER, OutputError):
        found = {f"coordinator, {k}": str(v) for k, v in about["coordinator"].items()}
        for site, entries in about["sites"].items():
            for entry in entries:
                name, _, value = str(entry).partition("=")
                found[f"{site}, {name}"] = value
    return found
