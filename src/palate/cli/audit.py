"""`palate audit DATA...`: preference data before they cost money."""

import shutil

from palate.cli.data import MAX_WIDTH, with_files
from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.audit import AUDIT, PAGE, AuditConfig, audit
from palate.report.audit_text import as_text


def run_audit(arguments: list[str]) -> Printed:
    description = "Find what is wrong with preference data. DATA... may stand before the flags."
    parser = parser_for("audit", description, AuditConfig)
    config, _ = parse(parser, AuditConfig, as_spelled(with_files(with_config(arguments))))
    result = audit(config)
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    text = (
        f"{as_text(result.values, width)}\n\n"
        f"findings  {result.directory / AUDIT}\npage      {result.directory / PAGE}"
    )
    values = {**result.values, "output": str(result.directory)}
    return Printed(text, values, exit_code=int(result.fails(config.fail_on)))


def as_spelled(arguments: list[str]) -> list[str]:
    """The same with `--fail-on` under the name of its setting."""
    return [
        "--fail_on" + argument.removeprefix("--fail-on")
        if argument == "--fail-on" or argument.startswith("--fail-on=")
        else argument
        for argument in arguments
    ]


def with_config(arguments: list[str]) -> list[str]:
    """The same with a leading YAML file, which is no data, put into `--config`."""
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        return ["--config", *arguments]
    return arguments
