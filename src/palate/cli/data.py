"""`palate data ...`: look at preference files, and write them in another format."""

import json
import shutil
from collections.abc import Sequence

from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.convert import ConvertConfig, convert
from palate.pipeline.inspection.inspect import InspectConfig, inspect_sources
from palate.pipeline.inspection.report import as_json, as_text
from palate.text import plural

MAX_WIDTH = 110
_WITHOUT_VALUE = ("--json", "--help", "-h")


def run_data_inspect(arguments: list[str]) -> Printed:
    description = "Say what preference files hold. FILE... may stand before or between the flags."
    parser = parser_for("data inspect", description, InspectConfig)
    config, _ = parse(parser, InspectConfig, with_files(arguments))
    found = inspect_sources(config)
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    rule = "\n" + "=" * width + "\n"
    return Printed(
        rule.join(as_text(seen, width) for seen in found),
        {"sources": [as_json(seen) for seen in found]},
    )


def with_files(arguments: Sequence[str]) -> list[str]:
    """The same with names of files that stand for themselves put into `--data`."""
    files, flags = split_files(arguments)
    return [*flags, *(["--data", json.dumps(files)] if files else [])]


def split_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands for itself, and flags with their values."""
    files: list[str] = []
    flags: list[str] = []
    expects_value = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        if is_flag or expects_value:
            flags.append(argument)
        else:
            files.append(argument)
        expects_value = is_flag and argument not in _WITHOUT_VALUE and "=" not in argument
    return files, flags


def run_data_convert(arguments: list[str]) -> Printed:
    description = "Write preferences in another format. FILE... may stand before the flags."
    parser = parser_for("data convert", description, ConvertConfig)
    config, _ = parse(parser, ConvertConfig, with_files(arguments))
    result = convert(config)
    formats = ", ".join(f"{source}: {name}" for source, name in result.formats.items())
    as_text_note = (
        f"\n{result.num_as_text} values have no form in JSON and were written as text"
        if result.num_as_text
        else ""
    )
    text = (
        f"format {formats}\n{result.ledger.summary(result.num_rows_kept)}\n"
        f"{plural(result.num_written, 'row')} of {plural(result.num_groups, 'group')} written to"
        f" {result.output}"
        f"{as_text_note}\nledger  {config.ledger}"
    )
    values = {
        "output": result.output,
        "formats": result.formats,
        "num_rows": result.ledger.num_rows_read,
        "num_rows_kept": result.num_rows_kept,
        "num_groups": result.num_groups,
        "num_written": result.num_written,
        "num_as_text": result.num_as_text,
        "ledger": result.ledger.by_reason(),
        "ledger_file": config.ledger,
    }
    return Printed(text, values)
