"""`reconcile why`: a decision step by step, and what a reason means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from reconciler.cli import wiring
from reconciler.cli.node import config_option, json_option, make_plan

if TYPE_CHECKING:
    from reconciler.desired import Desired
    from reconciler.target import Choice
    from schemas.observation import Observed
    from schemas.plan import Explanation


@click.command()
@click.argument("thing", default="")
@config_option
@json_option
def why(thing: str, config_file: str | None, as_json: bool) -> None:
    """Explain the decision about THING, or about everything: what is so, why, and why not otherwise.

    THING is a model, `runtime`, `mode`, `gpu`, `front`, a backend, an instance, or a condition such as `Ready`.

    Where THING is a reason (`ModelCorrupt`), what it means and what to do about it; that needs no node.
    """
    from schemas.reasons import reasons
    from schemas.states import CONDITIONS, HELD

    if thing in reasons():
        _explain_reason(thing, as_json=as_json)
        return
    if state := HELD.get(thing) or CONDITIONS.get(thing):
        click.echo(json.dumps({"formatVersion": "1", "reason": thing, "meaning": state}) if as_json else state)
        return
    from reconciler.cli.passes import state_of
    from reconciler.explaining import facts, held_for
    from runtime.host import SystemClock

    config = wiring.load_config(wiring.config_path(config_file))
    known: list[Explanation] = []
    chosen: list[Choice] = []

    def looked(desired: Desired, observed: Observed) -> None:
        from reconciler.published import read_status
        from reconciler.target import choose

        choice = choose(desired, observed, config, SystemClock().now())
        chosen.append(choice)
        known.extend(facts(thing, desired, observed, choice, config, read_status(state_of(config))))

    made, _ = make_plan(config, None, looked=looked)
    steps = [step for step in made.trace if thing in step.subject] if thing else list(made.trace)
    steps += [step for step in known if step not in steps]
    held = [item for choice in chosen for item in held_for(thing, choice, made.held)]
    actions = [action for action in made.actions if thing in action.id]
    if as_json:
        document = {
            "formatVersion": "1",
            "trace": [json.loads(step.to_json()) for step in steps],
            "held": [json.loads(item.to_json()) for item in held],
            "actions": [json.loads(action.to_json()) for action in actions],
        }
        click.echo(json.dumps(document))
        return
    from reconciler.cli.render_plan import why_text

    click.echo(why_text(steps, held, actions, thing))


def _explain_reason(reason: str, *, as_json: bool) -> None:
    from reconciler.cli.console import paint, say
    from schemas.reasons import RETRY, meaning, reasons

    cls = reasons()[reason]
    what, do = meaning(cls)
    if as_json:
        document = {"reason": reason, "meaning": what, "do": do, "exitCode": cls.exit_code, "retry": cls.retry}
        click.echo(json.dumps({"formatVersion": "1", **document}))
        return
    say(f"{paint(reason, 'bold')} (exit code {cls.exit_code}; {RETRY[cls.retry]})", "", what, "", f"What to do: {do}")
