"""Flower entry point of a site: a handler for each kind of message.

Handlers translate; the work is done elsewhere. They import it when they are called, since torch and
transformers take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import RecordDict

from client.guard import SiteApp

if TYPE_CHECKING:
    from client.site import SiteRun
    from client.state import SiteState

app = SiteApp()


@app.handles("query.handshake")
def handshake(at: SiteRun, _content: RecordDict) -> RecordDict:
    """Say who this site is, what it holds and what it would compute with."""
    return _site_info(_state(at))


@app.handles("train.finetune")
def finetune(at: SiteRun, _content: RecordDict) -> RecordDict:
    """Train this site's adapter where it has none, and say again what the site is."""
    from client.handlers.finetune import fine_tune_site
    from layerweld.runtime.progress import report_progress

    state = _state(at)
    what = f"fine-tuning {state.site.name}"
    fine_tune_site(state, lambda done, total: report_progress(what, done, total))
    reply = _site_info(state)
    state.files.require_trained()  # nobody has taken it away meanwhile
    return reply


@app.handles("train.other_params")
def other_params(at: SiteRun, _content: RecordDict) -> RecordDict:
    """Send the other parameters: what full fine-tuning changed outside of the linear layers."""
    from layerweld.transport.other_params import encode_other_params

    return encode_other_params(_state(at).adapter.task_vector.other_params)


@app.handles("train.adapter")
def adapter(at: SiteRun, _content: RecordDict) -> RecordDict:
    """Send this site's updates as they are: for methods that need no statistics."""
    from layerweld.transport.updates import encode_updates

    return encode_updates(_state(at).adapter.task_vector.updates)


@app.handles("train.fisher")
def fisher(at: SiteRun, content: RecordDict) -> RecordDict:
    """Send the diagonal Fisher information of this site's own model, and its product with ΔW."""
    from client.handlers.fisher import fisher_sums
    from client.handlers.requests import model_to_measure
    from layerweld.transport.fisher import FISHER, encode_fisher

    state = _state(at)
    return encode_fisher(fisher_sums(state, model_to_measure(FISHER, state, content).layers))


@app.handles("train.entropy")
def entropy(at: SiteRun, content: RecordDict) -> RecordDict:
    """Send the gradient, by every coefficient, of the entropy of this site's own head."""
    from client.handlers.coefficients import reply_to
    from client.handlers.requests import coefficients_request
    from layerweld.transport.coefficients import encode_coefficients

    state = _state(at)
    return encode_coefficients(reply_to(state, coefficients_request(state, content)))


@app.handles("train.distillation")
def distillation(at: SiteRun, content: RecordDict) -> RecordDict:
    """Send the gradient, by one block's weights, of its distance to this site's own block."""
    from client.handlers.block_gradients import reply_to
    from client.handlers.requests import block_request
    from layerweld.transport.block_gradients import encode_block_gradients

    state = _state(at)
    return encode_block_gradients(reply_to(state, block_request(state, content)))


@app.handles("train.statistics")
def statistics(at: SiteRun, content: RecordDict) -> RecordDict:
    """Send the Gram matrices and products of one step's groups."""
    from client.handlers.requests import statistics_request
    from client.handlers.statistics import reply_to
    from layerweld.transport.statistics import encode_statistics

    state = _state(at)
    return encode_statistics(reply_to(state, statistics_request(state, content)))


@app.handles("evaluate.model")
def evaluate(at: SiteRun, content: RecordDict) -> RecordDict:
    """Measure one model's accuracy on this site's held-out samples, with this site's own head."""
    from client.handlers.measure import held_out_accuracy
    from client.handlers.requests import model_to_measure
    from layerweld.transport.evaluation import EVALUATION, encode_accuracy

    state = _state(at)
    return encode_accuracy(*held_out_accuracy(state, model_to_measure(EVALUATION, state, content)))


@app.handles("query.shift")
def shift(at: SiteRun, content: RecordDict) -> RecordDict:
    """Measure eq. 8 of one merged model per layer group, and send that one number each."""
    from client.handlers.measure import shift_per_group
    from client.handlers.requests import model_to_measure
    from layerweld.transport.shift import SHIFT, encode_shifts

    state = _state(at)
    return encode_shifts(shift_per_group(state, model_to_measure(SHIFT, state, content)))


@app.handles("query.finished")
def finished(at: SiteRun, _content: RecordDict) -> RecordDict:
    """Forget a finished run; the adapter and its scores stay."""
    at.forget()
    return RecordDict()


def _site_info(state: SiteState) -> RecordDict:
    from client.handlers.site_info import site_info
    from layerweld.transport.site_info import encode_site_info

    return encode_site_info(site_info(state))


def _state(at: SiteRun) -> SiteState:
    from client.state import site_state
    from layerweld.runtime.numerics import use_threads

    use_threads(at.settings.calibration.threads)
    return site_state(*at)
