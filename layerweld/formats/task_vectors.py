"""Read what a site fine-tuned, adapter or whole model, as a task vector of the base model."""

from __future__ import annotations

from pathlib import Path

from layerweld.errors import AdapterError
from layerweld.formats.adapters import Adapter, digest_of, read_adapter
from layerweld.formats.checkpoint import read_checkpoint
from layerweld.model.base_model import BaseModel
from layerweld.untrusted.files import check_readable


def read_fine_tuned(folder: str | Path, base: BaseModel) -> Adapter:
    """Read a PEFT adapter folder, or a model folder if it has no ``adapter_config.json``.

    A whole model comes back with prefix ``""`` and without ranks.

    Raises:
        AdapterError: it is neither, or cannot be read as a task vector of the base model.
    """
    path = Path(folder).expanduser()
    check_readable(path, AdapterError)
    if (path / "adapter_config.json").is_file():
        return read_adapter(path, base)
    if (path / "config.json").is_file():
        task_vector = read_checkpoint(path, base)
        return Adapter(task_vector, prefix="", ranks={}, digest=digest_of(task_vector))
    raise AdapterError(
        f"{path} has neither adapter_config.json (a PEFT adapter) nor config.json (a model); give "
        f"the folder that `save_pretrained` wrote"
    )
