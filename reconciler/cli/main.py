"""The command `reconcile`: its table of sub-commands, its exit codes, and the form of its errors.

Imports click and nothing else before it knows which command was asked for.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import click

from reconciler.cli.lazy import Lazy, LazyGroup

# Looking for pydantic plugins reads the metadata of every installed distribution: 80 ms, for plugins nobody has here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
# Even the code that would look costs 20 ms: it imports importlib.metadata, and with it the mail and zip packages.
# Where a later pydantic looks elsewhere, this is never imported, and the line above still holds.
_no_plugins = ModuleType("pydantic.plugin._loader")
_no_plugins.__dict__["get_plugins"] = tuple
sys.modules.setdefault(_no_plugins.__name__, _no_plugins)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.errors import ReconcileError

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 64
"""EX_USAGE of sysexits.h. Click's own 2 means "changes are pending" here, and must never leak."""
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells write it."""
DEBUG: Final = "RECONCILE_DEBUG"

SECTIONS: Final = {
    "Node": {
        "init": Lazy("reconciler.cli.init:init", "Make this machine a node of a network."),
        "plan": Lazy("reconciler.cli.node:plan", "Show what would be done, and why. Changes nothing."),
        "apply": Lazy("reconciler.cli.node:apply", "Carry out a saved plan, if it is still what would be done."),
        "status": Lazy("reconciler.cli.node:status", "Show what the node is, what serves, and why."),
        "why": Lazy("reconciler.cli.why:why", "Explain a decision, step by step."),
        "models": Lazy("reconciler.cli.node:models", "List the node's models and their states."),
        "history": Lazy("reconciler.cli.node:history", "List the passes that had something to do."),
        "events": Lazy("reconciler.cli.node:events", "List what happened, or follow it."),
        "logs": Lazy("reconciler.cli.logs:logs", "Show what the runtime printed, or follow it."),
        "suspend": Lazy("reconciler.cli.node:suspend", "Hold every change but a withdrawal."),
        "resume": Lazy("reconciler.cli.node:resume", "Let changes be applied again."),
        "rollback": Lazy("reconciler.cli.rolling:rollback", "Serve what was good before what is wanted now."),
        "service": Lazy("reconciler.cli.service:service", "Print a systemd unit for this node's daemon."),
        "notify": Lazy("reconciler.cli.node:notify", "Tell a running daemon to look at once."),
        "verify": Lazy("reconciler.cli.store:verify", "Hash stored models again, now."),
        "doctor": Lazy("reconciler.cli.doctor:doctor", "Look for what keeps this node from working."),
        "validate": Lazy("reconciler.cli.validating:validate", "Run the probe against what serves, and show it."),
        "audit": Lazy("reconciler.cli.audit:audit", "Verify receipts of validation, anywhere."),
        "gc": Lazy("reconciler.cli.store:gc", "Remove what is no longer listed, after its grace."),
        "retry": Lazy("reconciler.cli.node:retry", "Forget remembered failures and try again."),
    },
    "Network operator": {
        "key": Lazy("reconciler.cli.key:key", "Make, import and look at signing keys."),
        "trust": Lazy("reconciler.cli.trust:trust", "Say who may sign: roles, thresholds, rotation."),
        "snapshot": Lazy("reconciler.cli.snapshot:snapshot", "Write, sign and check the desired state."),
        "model": Lazy("reconciler.cli.model:model", "Approve models: manifests, sources, states."),
        "runtime": Lazy("reconciler.cli.runtimes:runtime", "Say how models are served: engine, image, limits."),
        "probe": Lazy("reconciler.cli.probe:probe", "Record what a healthy model answers."),
        "schema": Lazy("reconciler.cli.schema:schema", "Print the JSON Schemas of all documents."),
    },
}


class Root(LazyGroup):
    """The command itself: what any sub-command raises becomes an exit code and one clear message."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run and exit; see the CLI contract for the codes. Never anything but standalone."""
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(_guarded(lambda: super(Root, self).main(arguments, prog_name, standalone_mode=False), arguments))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from reconciler.cli.wiring import agent_version

    click.echo(f"reconcile {agent_version()}")
    ctx.exit()


def _interval(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    from reconciler.cli.options import seconds

    return seconds(text)


@click.group(
    cls=Root,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    epilog="Exit codes: 0 done or nothing to do, 1 error, 2 changes pending (plan --detailed-exitcode), "
    "3 desired state not trusted, 4 plan is stale, 5 changes held, 6 not ready, 64 usage.",
)
@click.option("--watch", is_flag=True, help="Stay, and make a pass whenever something may have changed.")
@click.option("--interval", callback=_interval, metavar="TIME", help="With --watch: time between looks, e.g. 30s.")
@click.option("--stop-runtime", is_flag=True, help="With --watch: stop the runtime when the daemon is told to end.")
@click.option(
    "--config",
    "-c",
    "config_file",
    metavar="FILE",
    help="The node's configuration (default: RECONCILE_CONFIG, then /etc/reconcile/node.yaml).",
)
@click.option("--ignore-window", is_flag=True, help="Make changes outside their maintenance windows; recorded.")
@click.option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    help="With --watch: lines for people or JSON objects (default: logs.format of the configuration).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def cli(
    ctx: click.Context,
    config_file: str | None,
    interval: int | None,
    *,
    watch: bool,
    stop_runtime: bool,
    ignore_window: bool,
    as_json: bool,
    log_format: Literal["human", "json"] | None,
) -> int:
    """Keep an inference node in the state that its network's operators signed and committed to git.

    Without a command: one pass. Fetch, verify, observe, plan, apply.
    """
    if ctx.invoked_subcommand is not None:
        if watch or interval is not None or ignore_window or stop_runtime or log_format:
            raise click.UsageError("--watch, --interval and --ignore-window go before a pass, not before a command")
        # What stands before the command holds for it as well, unless it is told otherwise.
        given = {"config_file": config_file} if config_file else {}
        ctx.default_map = {ctx.invoked_subcommand: {**given, **({"as_json": True} if as_json else {})}}
        return 0
    if stop_runtime and not watch:
        raise click.UsageError("--stop-runtime goes with --watch")
    if interval is not None and not watch:
        raise click.UsageError("--interval goes with --watch")
    if log_format is not None and not watch:
        raise click.UsageError("--log-format goes with --watch")
    if ignore_window and watch:
        raise click.UsageError("--ignore-window is for one pass, not for --watch")
    if watch:
        from reconciler.cli.daemon import stay

        return stay(config_file, interval, stop_runtime=stop_runtime, as_json=as_json, log_format=log_format)
    from reconciler.cli.passes import run_once

    return run_once(config_file, ignore_window=ignore_window, as_json=as_json)


def main() -> None:
    """The entry point."""
    # Importing makes objects by the ten thousand and no garbage: looking for some costs a short command a tenth of its
    # time. A pass and the daemon turn the collector on again.
    gc.disable()
    cli.main(prog_name="reconcile")


# --- from exceptions to exit codes --------------------------------------------------------------------------------


def _guarded(run: Any, arguments: list[str]) -> int:
    """Run, and return the exit code."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        code = run()
        sys.stdout.flush()
    except click.ClickException as error:
        return _usage(error, as_json=as_json)
    except (click.Abort, KeyboardInterrupt) as error:
        return _aborted(error)
    except BrokenPipeError:
        _silence()
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001 - the last place that can turn it into words
        from schemas.errors import ReconcileError

        if isinstance(error, ReconcileError):
            return _refused(error, as_json=as_json)
        return _unexpected(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _usage(error: click.ClickException, *, as_json: bool) -> int:
    code = EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_ERROR
    if as_json:
        _print_error(type(error).__name__ if code == EXIT_ERROR else "UsageError", error.format_message(), "", code)
    else:
        error.show()
    return code


def _refused(error: ReconcileError, *, as_json: bool) -> int:
    if as_json:
        _print_error(error.reason, error.message, error.hint, error.exit_code)
    else:
        from reconciler.cli.console import paint

        click.echo(f"{paint('error:', 'red')} {error.reason}: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
    if os.environ.get(DEBUG):
        _show_traceback(error)
    return error.exit_code


def _aborted(error: BaseException) -> int:
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, KeyboardInterrupt):
        with suppress(BrokenPipeError):
            click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    click.echo("aborted", err=True)
    return EXIT_ERROR


def _unexpected(error: Exception, *, as_json: bool) -> int:
    text = " ".join(str(error).split()) or "no message"
    message = f"{type(error).__name__}: {text}"
    hint = f"this is a defect of reconcile; {DEBUG}=1 shows the traceback, for a report"
    if isinstance(error, OSError):  # a disk that is full, a file that may not be read: not ours, and worth no report
        hint = f"{DEBUG}=1 shows where it happened"
    if as_json:
        _print_error("InternalError", message, hint, EXIT_ERROR)
    else:
        click.echo(f"error: InternalError: {message}\nhint: {hint}", err=True)
    if os.environ.get(DEBUG):
        _show_traceback(error)
    return EXIT_ERROR


def _print_error(reason: str, message: str, hint: str, code: int) -> None:
    error = {"reason": reason, "message": message, "hint": hint, "exitCode": code}
    click.echo(json.dumps({"formatVersion": "1", "error": error}))


def _show_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


def _silence() -> None:
    """Nobody reads any more: let the interpreter's own flush at its end go nowhere, quietly."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
