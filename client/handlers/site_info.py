"""What a site says of itself before anything is computed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from client.data.labels import check_trainable, labels_of
from client.handlers.finetune import targets
from client.state import SiteState
from client.training.heads import load_head
from layerweld import __version__
from layerweld.errors import AdapterError, AdapterLostError, DataError
from layerweld.model.base_model import tokenizer_fingerprint
from layerweld.model.collect import ReplayableModel
from layerweld.runtime.numerics import numeric_environment
from layerweld.transport.site_info import SiteInfo
from layerweld.updates.shared_factor import digest_of_draw, digest_of_factors

_PACKAGES = ("torch", "transformers", "peft", "flwr")


def site_info(state: SiteState) -> SiteInfo:
    """Read the model, the samples, the adapter and the head (if there are any) and describe them.

    Raises:
        LayerweldError: one of them cannot be used for what the run will ask of it. It is said here,
            before anything is computed, and not once everything is merged.
    """
    is_untrained = state.files.must_fine_tune
    if is_untrained:
        check_trainable(state.data.training_samples.dataset)
    _check_head(state)
    classes = state.head.classes
    evaluates = _can_evaluate(state)
    if evaluates and state.data.held_out is not None:
        labels_of(state.data.held_out, classes)
    kind, layers, ranks, prefix = _adapter_facts(state)
    model = ReplayableModel(state.base.backbone, state.plan)
    recording = state.recording(model, shifted_embeddings=False)
    tokens = sum(int(batch.keep.sum()) for batch in recording)
    if tokens == 0:
        raise DataError(
            f"{state.site.name}: no calibration token in {len(state.data.dataset)} samples"
        )
    here = numeric_environment(state.settings.calibration.device)
    info = SiteInfo(
        site=state.site.name,
        base=state.base.fingerprint,
        tokenizer=tokenizer_fingerprint(state.base.folder),
        plan=state.plan.digest,
        settings=state.settings.digest(),
        kind=kind,
        layers=layers,
        ranks=ranks,
        name_prefix=prefix,
        task="" if state.files.must_fine_tune else state.adapter.task,
        samples=len(state.data.dataset),
        calibration_samples=len(state.data.calibration_samples),
        tokens=tokens,
        skipped=state.data.dataset.skipped,
        evaluates=evaluates,
        classifies=bool(classes),
        labelled=bool(state.data.dataset.classes) and {*state.data.dataset.classes} <= {*classes},
        factors=_digest_of_factors(state),
        adapter="" if state.files.must_fine_tune else state.adapter.digest,
        dataset=_digest_of_dataset(state),
        versions=(f"layerweld={__version__}", *(f"{name}={version(name)}" for name in _PACKAGES)),
        environment=tuple(f"{name}={value}" for name, value in here.items()),
    )
    if state.files.must_fine_tune != is_untrained:
        raise AdapterLostError(f"{state.site.name} lost its adapter during the handshake")
    return info


def _check_head(state: SiteState) -> None:
    """A head that the site names, or has, fits the model.

    Raises:
        AdapterError: it is missing, is no head, or reads another number of features.
    """
    if state.settings.calibration.prompt_end or state.files.must_fine_tune:
        return
    if state.site.head or state.head.exists:
        head, width = load_head(state.files.head_file), state.base.d_model
        if head.linear.in_features != width:
            raise AdapterError(
                f"{state.files.head_file} reads {head.linear.in_features} features, and the base "
                f"model has {width}: give {state.site.name} the head that was trained on this model"
            )


def _adapter_facts(state: SiteState) -> tuple[str, tuple[str, ...], tuple[int, ...], str]:
    if state.files.must_fine_tune:
        layers = targets(state)
        return "none", layers, (state.settings.finetune.rank,) * len(layers), ""
    adapter = state.adapter
    updates = adapter.task_vector.updates
    layers = tuple(name for name in state.plan.layer_names if name in updates)
    ranks = tuple(updates[name].rank for name in layers)
    kind = "lora" if adapter.task_vector.is_low_rank else "full"
    return kind, layers, ranks, adapter.prefix


def _can_evaluate(state: SiteState) -> bool:
    if not state.settings.evaluate.enabled or not state.head.exists:
        return False
    return state.data.evaluation_samples is not None


def _digest_of_factors(state: SiteState) -> str:
    """Of the site's own adapter, or of what draws the ``A`` that it will freeze."""
    finetune = state.settings.finetune
    if finetune.freeze_a and not state.site.adapter:
        return digest_of_draw(state.settings.calibration.seed, finetune.rank, targets(state))
    return (
        "" if state.files.must_fine_tune else digest_of_factors(state.adapter.task_vector.updates)
    )


def _digest_of_dataset(state: SiteState) -> str:
    """SHA-256 over the samples, the held-out samples and the head.

    Another one means that what a run or a comparison found before does not hold any more. It needs
    no secret: it tells something only to who knows every single sample already.
    """
    held_out = state.data.held_out
    parts = [
        state.data.dataset.digest.encode(),
        held_out.digest.encode() if held_out else b"",
        b"" if state.files.must_fine_tune or not state.head.exists else state.head.content,
    ]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()
