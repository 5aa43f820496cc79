"""`palate evaluate MODEL DATA...`: how good a reward model is, and what to fear."""

import json
import shutil
from itertools import pairwise

from palate.artifacts.rundir import EVALUATION
from palate.cli.audit import as_spelled, with_config
from palate.cli.data import MAX_WIDTH, split_files
from palate.cli.parsing import UsageError, parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.evaluate import PAGE, evaluate
from palate.pipeline.evaluate_config import EvaluateConfig
from palate.report.evaluation_text import as_text
from palate.text import plural


def run_evaluate(arguments: list[str]) -> Printed:
    description = "Measure a reward model. MODEL DATA... may stand before or between the flags."
    parser = parser_for("evaluate", description, EvaluateConfig)
    named = as_spelled(with_model_and_files(with_config(arguments)))
    _check_suite(named)
    config, _ = parse(parser, EvaluateConfig, named)
    result = evaluate(config)
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    lines = []
    if config.data:
        elsewhere = f", {result.num_elsewhere} in other parts" if result.num_elsewhere else ""
        lines += [
            result.ledger.summary(result.num_rows_kept),
            f"{plural(result.num_prompts, 'prompt')} measured{elsewhere}",
        ]
    lines.append(as_text(result.values, width))
    if result.directory is not None:
        lines += [
            "",
            f"numbers  {result.directory / EVALUATION}",
            f"page     {result.directory / PAGE}",
        ]
    values = {
        **result.values,
        "num_prompts": result.num_prompts,
        "num_rows": result.ledger.num_rows_read,
        "ledger": result.ledger.by_reason(),
        "output": None if result.directory is None else str(result.directory),
    }
    return Printed("\n".join(lines), values, exit_code=int(result.fails(config.fail_on)))


def _check_suite(arguments: list[str]) -> None:
    """Refuse a benchmark that is named twice, of which the parser would forget the first file, and
    a file without a benchmark's name."""
    given = [argument.partition("=")[0] for argument in arguments]
    for argument, following in pairwise([*arguments, ""]):
        flag, _, value = argument.partition("=")
        if flag.startswith("--suite.") and given.count(flag) > 1:
            raise UsageError(f"{flag} is given twice; put its files into one folder, or run twice")
        if flag == "--suite" and not (value or following).startswith("{"):
            raise UsageError("--suite takes a benchmark's name: --suite.rewardbench FILE")


def with_model_and_files(arguments: list[str]) -> list[str]:
    """The same with what stands for itself put under its flag: the first into `--model`, unless
    that is given, the others into `--data`."""
    files, flags = split_files(arguments)
    if files and not any(flag.split("=")[0] == "--model" for flag in flags):
        flags += ["--model", files[0]]
        files = files[1:]
    return [*flags, *(["--data", json.dumps(files)] if files else [])]
