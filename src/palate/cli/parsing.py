"""Command lines and YAML files to configuration dataclasses, with a hint for a wrong key."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from palate.errors import PalateError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parser_for(verb: str, description: str, config_class: type) -> ArgumentParser:
    """A parser whose flags and YAML keys are the fields of `config_class`."""
    parser = ArgumentParser(prog=f"palate {verb}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; flags override it")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_class_arguments(config_class)
    return parser


def parse(parser: ArgumentParser, config_class: type, arguments: Sequence[str]) -> tuple[Any, Any]:
    """(configuration, all parsed flags). A leading YAML path stands for `--config PATH`.

    Raises PalateError, naming the nearest known key when one is unknown.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        if not arguments[0].endswith((".yaml", ".yml", ".json")):
            raise PalateError(f"unexpected argument {arguments[0]!r}; a configuration ends in .yaml")
        arguments = ["--config", *arguments]
    for position, argument in enumerate(arguments[:-1]):
        if argument == "--config" and not Path(arguments[position + 1]).exists():
            raise PalateError(f"{arguments[position + 1]}: no such configuration file")
    known = list(_keys(config_class))
    for argument in arguments:
        # argparse takes a prefix for the whole flag, which would hide a misspelling.
        flag = argument.split("=")[0].removeprefix("--").removesuffix("+")
        if argument.startswith("--") and flag not in [*known, "config", "json", "dry-run", "help"]:
            raise PalateError(_unknown(flag, known))
    try:
        parsed = parser.parse_args(arguments)
        created = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        raise PalateError(_explain(str(error), known)) from error
    values = {field.name: created[field.name] for field in dataclasses.fields(config_class)}
    return config_class(**values), created


def _keys(config_class: type, prefix: str = "") -> list[str]:
    """All keys of a nested configuration, dotted."""
    found = []
    for field in dataclasses.fields(config_class):
        found.append(prefix + field.name)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += _keys(field.type, f"{prefix}{field.name}.")
    return found


def _unknown(key: str, known: Sequence[str]) -> str:
    by_last_part = {name.split(".")[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        by_last_part[name]
        for name in difflib.get_close_matches(key.split(".")[-1], by_last_part, n=1, cutoff=0.6)
    ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown configuration key {key!r}{hint}"


def _explain(message: str, known: Sequence[str]) -> str:
    """jsonargparse's message, with the nearest key where it complains about an unknown one."""
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if group:
        return _unknown(f"{group[1]}.{group[2]}", known)
    option = re.search(r"Option '([\w.]+)' is not accepted|arguments?: -*([\w.-]+)", message)
    if option and "required" not in message:
        return _unknown(option[1] or option[2], known)
    required = re.search(r"arguments are required: ([\w., ]+)", message)
    if required:
        return f"missing: {required[1]}; give it in the YAML file or as a flag"
    return re.sub(r"\s+", " ", message).strip()

