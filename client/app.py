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
    return _introduced(_state(message, context), message)


@app.train("finetune")
def finetune(message: Message, context: Context) -> Message:
    """Train this site's adapter where it has none, and introduce the site again."""
    from client.state import fine_tune_site
    from layerweld.runtime.progress import report_progress

    state = _state(message, context)
    what = f"fine-tuning {state.site.name}"
    fine_tune_site(state, lambda done, total: report_progress(what, done, total))
    introduced = _introduced(state, message)
    state.require_trained()  # nobody has taken it away meanwhile
    return introduced


@app.train("remainder")
def remainder(message: Message, context: Context) -> Message:
    """Send what full fine-tuning changed outside of the linear layers."""
    from layerweld.transport.remainder import encode_remainder

    state = _state(message, context)
    return Message(encode_remainder(state.adapter.task_vector.remainder), reply_to=message)


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
    from client.handlers.questions import model_to_measure
    from layerweld.transport.fisher import encode_fisher

    state = _state(message, context)
    sums = fisher_sums(state, model_to_measure(state, message.content).layers)
    return Message(encode_fisher(sums), reply_to=message)


@app.train("entropy")
def entropy(message: Message, context: Context) -> Message:
    """Send the gradient, by every coefficient, of the entropy of this site's own head."""
    from client.handlers.entropy import answer
    from client.handlers.questions import coefficient_question
    from layerweld.transport.descent import encode_gradient

    state = _state(message, context)
    reply = answer(state, coefficient_question(state, message.content))
    return Message(encode_gradient(reply), reply_to=message)


@app.train("distillation")
def distillation(message: Message, context: Context) -> Message:
    """Send the gradient, by one block's weights, of its distance to this site's own block."""
    from client.handlers.distillation import answer
    from client.handlers.questions import block_question
    from layerweld.transport.descent import encode_block_gradients

    state = _state(message, context)
    reply = answer(state, block_question(state, message.content))
    return Message(encode_block_gradients(reply), reply_to=message)


@app.train("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Send the Gram matrices and products of one step's groups."""
    from client.handlers.chain import answer
    from client.handlers.questions import chain_question
    from layerweld.transport.chain import encode_answer

    state = _state(message, context)
    reply = answer(state, chain_question(state, message.content))
    return Message(encode_answer(reply), reply_to=message)


@app.evaluate("model")
def evaluate(message: Message, context: Context) -> Message:
    """Measure one model's accuracy on this site's held-out rows, with this site's own head."""
    from client.handlers.measure import held_out_accuracy
    from client.handlers.questions import model_to_measure
    from layerweld.transport.score import encode_score

    state = _state(message, context)
    found = held_out_accuracy(state, model_to_measure(state, message.content))
    return Message(encode_score(*found), reply_to=message)


@app.query("shift")
def shift(message: Message, context: Context) -> Message:
    """Measure eq. 8 of one merged model per layer group, and send that one number each."""
    from client.handlers.measure import shift_per_group
    from client.handlers.questions import model_to_measure
    from layerweld.transport.shift import encode_shifts

    state = _state(message, context)
    shifts = shift_per_group(state, model_to_measure(state, message.content))
    return Message(encode_shifts(shifts), reply_to=message)


@app.query("finished")
def finished(message: Message, context: Context) -> Message:
    """Forget a finished run; the adapter and its scores stay."""
    from client.site import forget_run
    from layerweld.settings.run import read_run_settings
    from layerweld.transport.run import decode_run

    settings = read_run_settings(context.run_config)
    forget_run([context.node_config], settings, decode_run(message.content))
    return Message(RecordDict(), reply_to=message)


def _introduced(state: "SiteState", message: Message) -> Message:
    from client.handlers.handshake import introduce
    from layerweld.transport.introduction import encode_introduction

    return Message(encode_introduction(introduce(state)), reply_to=message)


def _state(message: Message, context: Context) -> "SiteState":
    """The site's state; torch and transformers take seconds to import: not at start-up."""
    from client.site import site_of_node
    from client.state import site_state
    from layerweld.runtime.numerics import use_threads
    from layerweld.settings.run import read_run_settings
    from layerweld.transport.run import decode_run

    settings = read_run_settings(context.run_config)
    use_threads(settings.calibration.threads)
    site = site_of_node(context.node_config, settings)
    return site_state(site, settings, decode_run(message.content))
