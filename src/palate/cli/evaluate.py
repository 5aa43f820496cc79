"""`palate evaluate MODEL DATA...`: how good a reward model is, and what to fear."""

import json
import shutil

from palate.cli.audit import as_spelled, with_config
from palate.cli.data import MAX_WIDTH, split_files
from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.evaluate import EVALUATION, PAGE, evaluate
from palate.pipeline.evaluate_config import EvaluateConfig
from palate.report.evaluation_text import as_text
from palate.text import plural


def run_evaluate(arguments: list[str]) -> Printed:
    description = "Measure a reward model. MODEL DATA... may stand before or between the flags."
    parser = parser_for("evaluate", description, EvaluateConfig)
    named = as_spelled(with_model_and_files(with_config(arguments)))
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


def with_model_and_files(arguments: list[str]) -> list[str]:
    """The same with what stands for itself put under its flag: the first into `--model`, unless
    that is given, the others into `--data`."""
    files, flags = split_files(arguments)
    if files and not any(flag.split("=")[0] == "--model" for flag in flags):
        flags += ["--model", files[0]]
        files = files[1:]
    return [*flags, *(["--data", json.dumps(files)] if files else [])]
