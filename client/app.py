"""Flower entry point of a site. Handlers translate; the work is done elsewhere."""

from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict

from client.guard import SiteApp

if TYPE_CHECKING:
    from client.state import SiteState

app = SiteApp()


@app.query("handshake")
def handshake(message: Message, context: Context) -> Message:
    """Say who this site is, what it holds and what it would compute with."""
    return _with_site_info(_state(message, context), message)


@app.train("finetune")
def finetune(message: Message, context: Context) -> Message:
    """Train this site's adapter where it has none, and say again what the site is."""
    from client.state import fine_tune_site
    from layerweld.runtime.progress import report_progress

    state = _state(message, context)
    what = f"fine-tuning {state.site.name}"
    fine_tune_site(state, lambda done, total: report_progress(what, done, total))
    reply = _with_site_info(state, message)
    state.require_trained()  # nobody has taken it away meanwhile
    return reply


@app.train("remainder")
def remainder(message: Message, context: Context) -> Message:
    """Send the other parameters: what full fine-tuning changed outside of the linear layers."""
    from layerweld.transport.other_params import encode_other_params

    state = _state(message, context)
    return Message(encode_other_params(state.adapter.task_vector.remainder), reply_to=message)


@app.train("adapter")
def adapter(message: Message, context: Context) -> Message:
    """Send this site's updates as they are: for methods that need no statistics."""
    from layerweld.transport.updates import encode_updates

    state = _state(message, context)
    return Message(encode_updates(state.adapter.task_vector.updates), reply_to=message)


@app.train("fisher")
def fisher(message: Message, context: Context) -> Message:
    """Send the diagonal Fisher information of this site's own model, and its product with ΔW."""
    from client.handlers.fisher import fisher_sums
    from client.handlers.requests import model_to_measure
    from layerweld.transport.fisher import FISHER, encode_fisher

    state = _state(message, context)
    sums = fisher_sums(state, model_to_measure(FISHER, state, message.content).layers)
    return Message(encode_fisher(sums), reply_to=message)


@app.train("entropy")
def entropy(message: Message, context: Context) -> Message:
    """Send the gradient, by every coefficient, of the entropy of this site's own head."""
    from client.handlers.coefficients import reply_to
    from client.handlers.requests import coefficients_request
    from layerweld.transport.coefficients import encode_coefficients

    state = _state(message, context)
    reply = reply_to(state, coefficients_request(state, message.content))
    return Message(encode_coefficients(reply), reply_to=message)


@app.train("distillation")
def distillation(message: Message, context: Context) -> Message:
    """Send the gradient, by one block's weights, of its distance to this site's own block."""
    from client.handlers.block_gradients import reply_to
    from client.handlers.requests import block_request
    from layerweld.transport.block_gradients import encode_block_gradients

    state = _state(message, context)
    reply = reply_to(state, block_request(state, message.content))
    return Message(encode_block_gradients(reply), reply_to=message)


@app.train("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Send the Gram matrices and products of one step's groups."""
    from client.handlers.requests import statistics_request
    from client.handlers.statistics import reply_to
    from layerweld.transport.statistics import encode_statistics

    state = _state(message, context)
    reply = reply_to(state, statistics_request(state, message.content))
    return Message(encode_statistics(reply), reply_to=message)


@app.evaluate("model")
def evaluate(message: Message, context: Context) -> Message:
    """Measure one model's accuracy on this site's held-out rows, with this site's own head."""
    from client.handlers.measure import held_out_accuracy
    from client.handlers.requests import model_to_measure
    from layerweld.transport.evaluation import EVALUATION, encode_accuracy

    state = _state(message, context)
    model = model_to_measure(EVALUATION, state, message.content)
    return Message(encode_accuracy(*held_out_accuracy(state, model)), reply_to=message)


@app.query("shift")
def shift(message: Message, context: Context) -> Message:
    """Measure eq. 8 of one merged model per layer group, and send that one number each."""
    from client.handlers.measure import shift_per_group
    from client.handlers.requests import model_to_measure
    from layerweld.transport.shift import SHIFT, encode_shifts

    state = _state(message, context)
    shifts = shift_per_group(state, model_to_measure(SHIFT, state, message.content))
    return Message(encode_shifts(shifts), reply_to=message)


@app.query("finished")
def finished(message: Message, context: Context) -> Message:
    """Forget a finished run; the adapter and its scores stay."""
    from client.site import forget_run
    from layerweld.settings.run import read_run_settings
    from layerweld.transport.identity import identity_of

    settings = read_run_settings(context.run_config)
    forget_run([context.node_config], settings, identity_of(message.content).run)
    return Message(RecordDict(), reply_to=message)


def _with_site_info(state: "SiteState", message: Message) -> Message:
    from client.handlers.site_info import site_info
    from layerweld.transport.site_info import encode_site_info

    return Message(encode_site_info(site_info(state)), reply_to=message)


def _state(message: Message, context: Context) -> "SiteState":
    """The site's state; torch and transformers take seconds to import: not at start-up."""
    from client.site import site_of_node
    from client.state import site_state
    from layerweld.runtime.numerics import use_threads
    from layerweld.settings.run import read_run_settings
    from layerweld.transport.identity import identity_of

    settings = read_run_settings(context.run_config)
    use_threads(settings.calibration.threads)
    site = site_of_node(context.node_config, settings)
    return site_state(site, settings, identity_of(message.content).run)
