"""What a site classifies with: a head of its own, or the label words of its samples."""

from __future__ import annotations

from collections.abc import Sequence

from client.data.site_samples import SiteSamples
from client.files import SiteFiles
from client.site import SiteRun
from client.training.heads import ClassifierHead, load_head
from client.training.label_words import LabelWordHead, label_word_head
from layerweld.errors import AdapterError
from layerweld.model.base_model import BaseModel
from layerweld.untrusted.files import contents

_LARGEST = 2**30  # bytes


class OwnHead:
    """One site's head, as far as it is there. It never leaves the site.

    With ``calibration.prompt-end`` a class is the word that the model goes on with.

    Args:
        at: the site and the run.
        base: the base model.
        data: the site's samples.
        files: where a trained head lies.
    """

    def __init__(self, at: SiteRun, base: BaseModel, data: SiteSamples, files: SiteFiles) -> None:
        self._named = bool(at.site.head)
        self._prompt_end = at.settings.calibration.prompt_end
        self._base = base
        self._data = data
        self._files = files

    @property
    def exists(self) -> bool:
        """Whether the site can classify, now or once it is fine-tuned."""
        known = bool(self._prompt_end) or self._files.must_fine_tune
        return known or self._files.head_file.is_file()

    def load(self) -> ClassifierHead | LabelWordHead:
        """The head, or the label words.

        Raises:
            AdapterError: there is no head file, or a damaged one.
            AdapterLostError: the site trained it itself, and it is missing or damaged.
            ConfigError: the classes have no label words that tell them apart.
        """
        if self._prompt_end:
            return label_word_head(self._base, self._labels)
        self._require_trained()
        return load_head(self._files.head_file)

    @property
    def classes(self) -> Sequence[str]:
        """What the head tells apart, or will once it is trained; empty without a head.

        Raises:
            AdapterError: the head file is damaged.
            ConfigError: the classes have no label words that tell them apart.
        """
        if self._prompt_end:
            # Words stand for classes, so without classes they are no head.
            return self.load().classes if self._labels else ()
        if self._files.must_fine_tune:
            return self._data.dataset.classes
        return self.load().classes if self.exists else ()

    @property
    def content(self) -> bytes:
        """What the head's predictions depend on: its file, or the prompt's end and the label words.

        Raises:
            AdapterError: there is no head file.
            AdapterLostError: as :meth:`load`.
        """
        if self._prompt_end:
            return "\n".join([self._prompt_end, *self._labels]).encode()
        self._require_trained()
        return contents(self._files.head_file, AdapterError, _LARGEST)

    def _require_trained(self) -> None:
        if not self._named:
            self._files.require_trained()

    @property
    def _labels(self) -> Sequence[str]:
        held_out = self._data.held_out.classes if self._data.held_out else ()
        return self._data.dataset.classes or held_out
