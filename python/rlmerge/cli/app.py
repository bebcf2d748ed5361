"""The console script.

Nothing heavy is imported before ``main`` runs, so that ``rlmerge --version`` is quick and Ctrl-C during start-up ends
without a traceback.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        if sys.argv[1:] in (["--version"], ["-V"]):
            import rlmerge

            sys.stdout.write(f"rlmerge {rlmerge.__version__}\n")
            return 0
        return _run()
    except KeyboardInterrupt:
        from rlmerge.cli import _signals

        return _signals.exit_code()
    except MemoryError:
        # While something was imported: nothing is at hand any more that could say it better.
        if sys.stderr is not None:
            sys.stderr.write("error: out of memory\n")
        return 5


def _run() -> int:
    from rlmerge.cli import _signals

    _signals.handle()
    from rlmerge.cli._output import Output, hides

    # Typer repeats what it does not know; older versions do so with its control characters.
    names = [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")]
    odd = next((name for name in [*sys.argv[1:2], *names] if hides(name)), None)
    if odd is not None:
        message = f"no such command or option: {odd}"
        Output().error(message, "`rlmerge --help` lists them", {})
        return 2
    from rlmerge.cli._root import app

    code: object = 0
    try:
        app(prog_name="rlmerge")
    except SystemExit as end:
        code = end.code
    finally:
        _signals.end()
    return code if isinstance(code, int) else 0 if code is None else 1
