"""Command lines and YAML files to configuration dataclasses, with a hint for a wrong key."""

import dataclasses
import difflib
import json
import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from palate.artifacts.files import describe_os_error
from palate.errors import PalateError

set_parsing_settings(docstring_parse_attribute_docstrings=True)
OWN_FLAGS = ("config", "json", "dry-run", "help", "print_config")


class UsageError(PalateError):
    """A command line or configuration file that can't be understood."""


def parser_for(verb: str, description: str, config_class: type) -> ArgumentParser:
    """A parser whose flags and YAML keys are the fields of `config_class`."""
    parser = ArgumentParser(prog=f"palate {verb}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; flags override it")
    # Flags that are no part of the configuration: --print_config leaves out what has no default.
    help_of_json = "print one JSON object on stdout"
    parser.add_argument("--json", action="store_true", default=SUPPRESS, help=help_of_json)
    parser.add_class_arguments(config_class)
    return parser


def parse(parser: ArgumentParser, config_class: type, arguments: Sequence[str]) -> tuple[Any, Any]:
    """(configuration, all parsed flags). A leading YAML path stands for `--config PATH`.

    Raises UsageError, naming the nearest known key when one is unknown.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        if not arguments[0].endswith((".yaml", ".yml", ".json")):
            raise UsageError(f"unexpected argument {arguments[0]!r}; a configuration ends in .yaml")
        arguments = ["--config", *arguments]
    known = _keys(config_class)
    arguments = _with_lists(arguments, _list_keys(config_class))
    for argument, following in pairwise([*arguments, ""]):
        if not argument.startswith("--"):
            continue
        # argparse takes a prefix for the whole flag, which would hide a misspelling.
        flag, _, value = argument.removeprefix("--").partition("=")
        if flag == "config":
            _check_file(value or following, known)
        elif flag not in OWN_FLAGS:
            _check_key(flag.removesuffix("+"), known)
    try:
        parsed = parser.parse_args(arguments)
        created = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        raise UsageError(_explain(str(error), known)) from error
    values = {field.name: created[field.name] for field in dataclasses.fields(config_class)}
    return config_class(**values), created


def _keys(config_class: type, prefix: str = "") -> list[str]:
    """All keys of a nested configuration, dotted. A field that takes any names has `name.**` for
    plain values, otherwise `name.*` and `name.*.field` for the fields under each name."""
    found = []
    for field in dataclasses.fields(config_class):
        key = prefix + field.name
        found.append(key)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += _keys(field.type, f"{key}.")
        elif get_origin(field.type) is dict:
            value = get_args(field.type)[1]
            if dataclasses.is_dataclass(value) and isinstance(value, type):
                found += [f"{key}.*", *_keys(value, f"{key}.*.")]
            else:
                found.append(f"{key}.**")
    return found


def _list_keys(config_class: type, prefix: str = "") -> list[str]:
    """Keys whose value is a list of strings, dotted."""
    found = []
    for field in dataclasses.fields(config_class):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += _list_keys(field.type, f"{prefix}{field.name}.")
        elif get_origin(field.type) in (list, tuple):
            found.append(prefix + field.name)
    return found


def _with_lists(arguments: Sequence[str], list_keys: Sequence[str]) -> list[str]:
    """The same with `--a-key x,y` written as the parser wants it: `--a_key ["x", "y"]`."""
    found: list[str] = []
    expects_list = False
    for argument in arguments:
        if expects_list:
            found.append(_as_list(argument))
            expects_list = False
            continue
        flag, equals, value = argument.partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and key in list_keys:
            found.append(f"--{key}={_as_list(value)}" if equals else f"--{key}")
            expects_list = not equals
        else:
            found.append(argument)
    return found


def _as_list(value: str) -> str:
    return value if value.startswith("[") else json.dumps([v for v in value.split(",") if v])


def _check_file(name: str, known: Sequence[str]) -> None:
    """Refuse a configuration file that is missing or malformed or has an unknown key."""
    try:
        with open(name, encoding="utf-8") as handle:
            values = yaml.safe_load(handle)
    except OSError as error:
        raise UsageError(str(describe_os_error(error, name, "read"))) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UsageError(f"{name}: {found}; it must hold keys and values, as in `model: ...`")
    _check_mapping(name, values, known)


def _check_mapping(
    name: str, values: Mapping[Any, Any], known: Sequence[str], prefix: str = ""
) -> None:
    for key, value in values.items():
        _check_key(f"{prefix}{key}", known, f"{name}: ")
        if isinstance(value, Mapping):
            _check_mapping(name, value, known, f"{prefix}{key}.")


def _check_key(key: str, known: Sequence[str], where: str = "") -> None:
    if not any(_stands_for(pattern, key) for pattern in known):
        raise UsageError(where + unknown_key(key, known))


def _stands_for(pattern: str, key: str) -> bool:
    """Whether a known key, in which * is any name and a last ** any text, is this one."""
    parts, given = pattern.split("."), key.split(".")
    if parts[-1] == "**":
        parts, given = parts[:-1], given[: len(parts) - 1]
    return len(parts) == len(given) and all(
        part in ("*", name) for part, name in zip(parts, given, strict=True)
    )


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What to say about an unknown key: the nearest of those known, by all or by its last part."""
    by_last_part = {name.split(".")[-1]: name for name in known}
    free = [name.removesuffix(".**") for name in known if name.endswith(".**")]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        by_last_part[name]
        for name in difflib.get_close_matches(key.split(".")[-1], by_last_part, n=1, cutoff=0.6)
    ]
    top, dot, rest = key.partition(".")
    if not near and dot:  # suite.NAME, whose last part may be anything
        near = [f"{name}.{rest}" for name in difflib.get_close_matches(top, free, n=1, cutoff=0.6)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown configuration key {key!r}{hint}"


def _explain(message: str, known: Sequence[str]) -> str:
    """jsonargparse's message, with the nearest key where it complains about an unknown one."""
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if group:
        return unknown_key(f"{group[1]}.{group[2]}", known)
    option = re.search(r"Option '([\w.]+)' is not accepted|arguments?: -*([\w.-]+)", message)
    if option and "required" not in message:
        return unknown_key(option[1] or option[2], known)
    required = re.search(r"arguments are required: ([\w., ]+)", message)
    if required:
        return f"missing: {required[1]}; give it in the YAML file or as a flag"
    said = re.sub(r"\s+", " ", message).strip()
    said = re.sub(r"Expected a typing\.Literal\[([^]]*)\]", r"Expected one of \1", said)
    value = re.search(r'key "objective\.kind": .*Got value: (\S+)', said)
    if value is None:
        return said
    from palate.objectives.settings import OTHER_NAMES  # imports torch, which takes seconds

    return f"{said}. {OTHER_NAMES[value[1]]}" if value[1] in OTHER_NAMES else said
