"""`palate VERB ...`: dispatch, errors and exit codes."""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from palate.cli.printed import Printed
from palate.errors import Interrupted, PalateError

VERBS = {
    "quickstart": "train on the starter set, measure, score and rank a few answers",
    "train": "train a reward model from preferences",
    "plan": "say what a training run will cost: tokens, FLOPs, memory, time",
    "tune": "suggest a learning rate and a number of prompts a step",
    "evaluate": "measure a reward model on held-out preferences",
    "calibrate": "fit a length calibration for a trained model on a pool of preferences",
    "score": "score a file of answers",
    "rank": "rank answers to one prompt",
    "compare": "probability that one answer is preferred to another",
    "data inspect": "say what a preference file holds: format, rows, lengths, votes, three groups",
    "data convert": "write preferences as canonical JSONL, TRL's preference format or Parquet",
    "audit": "find what is wrong with preference data before it is trained on",
    "simulate": "write preferences whose true reward is known, with a fault or without",
    "runs": "list runs with their metrics",
    "runs diff": "what differs between two runs: data, configuration, versions, metrics",
}
MODULES = {
    "audit": "palate.cli.audit",
    "calibrate": "palate.cli.calibrate",
    "evaluate": "palate.cli.evaluate",
    "data": "palate.cli.data",
    "plan": "palate.cli.plan",
    "runs": "palate.cli.runs",
    "simulate": "palate.cli.simulate",
    "tune": "palate.cli.tune",
}
"""Modules of the verbs that are not in `palate.cli.verbs`, by their first word. Only the verb's own
is imported: those that train take seconds."""
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; 0 on success, 1 on failure and where what it found is one, 2 on wrong usage, 130
    after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"palate {version('palate')}")
        return 0
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb, rest = " ".join(arguments[:words]), arguments[words:]
    if verb not in VERBS:
        print(_unknown_verb(" ".join(arguments[:2])), file=sys.stderr)
        return EXIT_USAGE
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("palate").setLevel(logging.INFO)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    return _guarded(verb, rest)


def _guarded(verb: str, arguments: list[str]) -> int:
    from palate.cli.parsing import UsageError

    module = import_module(MODULES.get(verb.split()[0], "palate.cli.verbs"))
    run: Callable[[list[str]], Printed] = getattr(module, f"run_{verb.replace(' ', '_')}")
    # Libraries print to stdout as they like; with --json it holds one object and nothing else.
    asks_to_print = any(a.startswith(("--help", "--print_config")) or a == "-h" for a in arguments)
    stdout = sys.stdout if asks_to_print else sys.stderr
    try:
        with contextlib.redirect_stdout(stdout):
            printed = run(arguments)
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(json.dumps(printed.json) if "--json" in arguments else printed.text, flush=True)
        return printed.exit_code
    except PalateError as error:
        print(f"palate {verb}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR
    except SystemExit as done:  # argparse, after --help or wrong usage
        return int(done.code or 0)
    except KeyboardInterrupt:
        print(f"palate {verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
    except Interrupted as stopped:
        print(f"palate {verb}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    finally:
        _leave_process_group()


def _leave_process_group() -> None:
    """One of several processes that exits inside its group may abort, and torchrun then ends the
    others while they still write."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _usage() -> str:
    lines = [
        "usage: palate VERB [CONFIG.yaml] [--flags]   (palate VERB --help lists the flags)",
        "",
    ]
    return "\n".join(lines + [f"  {verb:<13} {what}" for verb, what in VERBS.items()])


def _unknown_verb(verb: str) -> str:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1) or difflib.get_close_matches(
        verb.split()[0], VERBS, n=1
    )
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"palate: unknown verb {verb!r}{hint}\n{_usage()}"


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
