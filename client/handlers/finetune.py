"""Train a site's adapter where it has none yet, or not all of it any more."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from client.state import SiteState
from client.training.finetune import fine_tune
from layerweld.errors import ConfigError
from layerweld.settings.run import FinetuneSettings


def fine_tune_site(state: SiteState, on_step: Callable[[int, int], None] | None = None) -> None:
    """Fine-tune on the site's samples, if it must.

    Args:
        state: of the site.
        on_step: called with the optimiser steps that are done, and how many there will be.
    """
    if not state.files.must_fine_tune:
        return
    state.forget_adapter()  # what it was before it was lost proves nothing
    folder = state.files.adapter_folder.parent
    shutil.rmtree(folder, ignore_errors=True)
    fine_tune(
        state.base,
        targets(state),
        state.data.training_samples,
        training_settings(state),
        state.settings.calibration.seed,
        folder,
        on_step,
        state.settings.calibration.prompt_end,
    )


def training_settings(state: SiteState) -> FinetuneSettings:
    """How the run wants an adapter trained; where its curves go is the site's own affair."""
    finetune = state.settings.finetune
    return finetune.model_copy(update={"logger": state.site.logger or finetune.logger})


def targets(state: SiteState) -> tuple[str, ...]:
    """Layers that fine-tuning adapts, by ``finetune.targets``.

    Raises:
        ConfigError: it fits no layer.
    """
    wanted, layers = state.settings.finetune.targets, state.plan.layer_names
    if wanted == "all-linear":
        return layers
    suffixes = tuple(suffix.strip() for suffix in wanted.split(","))
    chosen = tuple(name for name in layers if name.endswith(suffixes))
    if not chosen:
        raise ConfigError(
            f"finetune.targets = {wanted!r} fits no layer; the model has, for example, "
            f"{', '.join(layers[:3])}"
        )
    return chosen
