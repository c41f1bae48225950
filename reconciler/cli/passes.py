"""`reconcile`: one pass, here, or by the daemon that looks after the node."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli import wiring

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.executor import Reporter
    from reconciler.lookout import Lookout
    from reconciler.loop import PassResult, Reconciler
    from reconciler.state_dir import StateDir
    from reconciler.tempo import Tempo
    from reconciler.watch import Wake
    from runtime.interfaces import Progress
    from schemas.control import Question
    from schemas.node import NodeConfig


def run_once(config_file: str | None, *, ignore_window: bool, as_json: bool) -> int:
    """One pass; returns the exit code.

    Raises:
        StateLocked: another reconciler holds the node, and is no daemon that could be asked.
    """
    gc.enable()
    from schemas.control import Reconcile

    config = wiring.load_config(wiring.config_path(config_file))
    return make_pass(
        config,
        Reconcile(ignore_windows=ignore_window),
        lambda reconciler: reconciler.run_pass(ignore_windows=ignore_window),
        first=lambda wake: serve_imports(config, wake),
        as_json=as_json,
    )


def make_pass(
    config: NodeConfig,
    question: Question,
    here: Callable[[Reconciler], PassResult],
    *,
    first: Callable[[Wake], None] = lambda _wake: None,
    as_json: bool,
) -> int:
    """Make a pass here, or have the daemon that looks after the node make it; show it.

    Args:
        config: the node's.
        question: what a daemon is asked.
        here: makes the pass where there is none.
        first: done before that, while the node is held and its journal still closed.
        as_json: whether progress and outcome are for programs.

    Returns:
        The exit code.

    Raises:
        StateLocked: another reconciler holds the node, and is no daemon that could be asked.
    """
    from reconciler.watch import Wake
    from schemas.errors import DaemonUnreachable, StateLocked

    wake = Wake()
    wake.on_signals()
    state = state_of(config)
    try:
        with state.lock():
            first(wake)
            with opened(config, wake, as_json=as_json) as reconciler:
                result = reconciler.sign(here(reconciler), wake)
    except StateLocked as locked:
        try:
            result = pass_there(state, question, wake, as_json=as_json)
        except DaemonUnreachable:
            raise locked from None
    report(result, as_json=as_json)
    return result.exit_code


def pass_there(state: StateDir, question: Question, wake: Wake, *, as_json: bool) -> PassResult:
    """Have the daemon make a pass, and show what happens in it as if it happened here.

    Raises:
        DaemonUnreachable: there is none, or it ended.
        ReconcileError: the pass was refused.
    """
    from reconciler.asking import ask
    from reconciler.cli.progress import display
    from reconciler.loop import PassResult
    from reconciler.progress import Retelling
    from schemas.errors import DaemonUnreachable

    with display(as_json=as_json) as shown:
        retelling = Retelling(shown, shown.advance)
        try:
            done = ask(state, question, heard=retelling, stop=wake)
        except InterruptedError:
            raise click.Abort from None
    if done.result is None:
        raise DaemonUnreachable("the daemon answered something else than was asked")
    return PassResult(done.result.status, done.result.exit_code, tuple(retelling.outcomes), done.result.plan)


def serve_imports(config: NodeConfig, wake: Wake) -> None:
    """Import the bundle that somebody asked for while this process held the node, or before it came to."""
    state = state_of(config)
    if not (state.imports / "request.json").exists():
        return
    from reconciler.bundles.handover import Desk

    desk = Desk(state, wiring.host(wake).files)
    desk.serve(lambda path: wiring.import_bundle(config, Path(path), lambda *_: None, wake))


class opened:  # noqa: N801 - reads as the context manager that it is
    """A wired reconciler, with its display; closes its journal."""

    def __init__(
        self,
        config: NodeConfig,
        wake: Wake,
        *,
        as_json: bool,
        tell: Callable[[Reporter, Progress], tuple[Reporter, Progress]] = lambda reporter, advance: (reporter, advance),
        lookout: Lookout | None = None,
        tempo: Tempo | None = None,
        config_error: str = "",
        logged: bool = False,
    ) -> None:
        """Wire on entering.

        Args:
            config: the node's configuration.
            wake: ends what is under way.
            as_json: whether progress is for programs.
            tell: what is told of a pass besides the display; given the display's own two.
            lookout: as `Reconciler`.
            tempo: as `Reconciler`.
            config_error: as `Reconciler`.
            logged: whether what happens is written to the log rather than shown.
        """
        self._logged = logged
        self._config, self._wake, self._as_json, self._tell = config, wake, as_json, tell
        self._lookout, self._tempo, self._config_error = lookout, tempo, config_error

    def __enter__(self) -> Reconciler:
        from reconciler.belonging import remember
        from reconciler.cli.progress import display
        from reconciler.loop import Reconciler
        from reconciler.tracing import traced
        from reconciler.underway import Underway

        self._display = display(as_json=self._as_json, logged=self._logged)
        self._journal = wiring.open_journal(state_of(self._config), readonly=False)
        ports = wiring.host(self._wake)
        try:
            self._journal.close_interrupted(ports.clock.now())
            reporter, advance = self._tell(self._display, self._display.advance)
            underway = Underway()

            def advanced(subject: str, done: int, total: int) -> None:
                underway.advance(subject, done, total)
                advance(subject, done, total)

            node = wiring.build_node(self._config, self._journal, ports=ports, progress=advanced)
            remember(self._config, self._journal)
            self._traces = traced(self._config, node.node_id, wiring.agent_version())
            tracer = self._traces.__enter__()
        except BaseException:
            self._journal.close()
            raise
        self._display.__enter__()
        return Reconciler(
            node,
            wiring.build_source(node),
            reporter,
            self._lookout,
            tempo=self._tempo,
            config_error=self._config_error,
            tracer=tracer,
            underway=underway,
        )

    def __exit__(self, *trace: object) -> None:
        self._display.__exit__(None, None, None)
        self._journal.close()
        self._traces.__exit__(None, None, None)


def report(result: PassResult, *, as_json: bool) -> None:
    """Print how a pass ended."""
    from reconciler.cli.render_plan import plan_text
    from reconciler.cli.render_status import summary_text

    if as_json:
        click.echo(result.status.to_json())
        return
    if not result.outcomes and not result.plan.held:
        click.echo(plan_text(result.plan))
    click.echo(summary_text(result.status))


def state_of(config: NodeConfig) -> StateDir:
    """The state directory that a configuration names."""
    from reconciler.state_dir import StateDir

    return StateDir(Path(config.state_dir))
