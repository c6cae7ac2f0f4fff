"""Options of the verbs: dataclasses, filled from a YAML recipe and from flags, flags first."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, cast, get_args, get_type_hints

from transformers import HfArgumentParser

from hf_vq.arguments import check_fields
from hf_vq.cli.reading import place_of, read_recipe, read_yaml
from hf_vq.renaming import with_new_names


def nearest(name: str, known: Iterable[str]) -> str:
    """Half a sentence that names the nearest of the known names, for the end of an error."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else f" (known: {', '.join(sorted(known))})"


def check_names(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise a ValueError for the first given name that is not known, with the nearest one that is."""
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {where} {name!r}{nearest(str(name), known)}")


def as_mapping(name: str, value: Any) -> dict[str, Any]:
    """A copy of the value of a mapping option, empty for None; a ValueError names an option that is no mapping."""
    if not isinstance(value, dict | None):
        raise ValueError(f"{name}={value!r} must be a mapping of names to values")
    return dict(value or {})


def check_one_name(given: Collection[str], spellings: dict[str, str], dashes: str = "") -> None:
    """Raise a ValueError for an option that is given under both of its names."""
    for old, new in spellings.items():
        if old in given and new in given:
            raise ValueError(f"{dashes}{old} and {dashes}{new} are one option, got both")


class _Parser(HfArgumentParser):
    def error(self, message):
        raise ValueError(message)


def parse_options(
    types: Sequence[type],
    argv: list[str],
    *,
    verb: str,
    description: str,
    positional: str | Sequence[str] = "recipe",
    aliases: dict[str, str] | None = None,
    renamed: dict[str, str] | None = None,
    keys: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, str]]]] | None = None,
    continues: Callable[..., dict[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Fill option dataclasses from a recipe and flags.

    Args:
        types: dataclasses with distinct field names. A field of type `dict | str | None` is a mapping; one of its
            keys is set by a flag such as `--model_config.codebook_size 32`.
        argv: list of str, the command line after the verb.
        verb: name for the usage line.
        description: one sentence for --help.
        positional: what the argument without a flag is: "recipe", or a field; several, in their order.
        aliases: other spellings of options, {"output": "output_dir"}.
        renamed: older spellings, which are told on stderr, {"level": "grid"}.
        keys: of mapping options, by name: `keys(values)` tells by what was given who has the keys, and the new
            spellings by older ones.
        continues: completes what was given from an earlier run, see `hf_vq.cli.resuming.continued`.

    Returns:
        tuple of one filled dataclass per type, then a dict of what was given (by recipe or flag), defaults left out.

    Raises:
        ValueError: an unknown or misspelled name (names the nearest one), an option under two names, or a value of
            the wrong type.
    """
    parser = _Parser(cast(Any, types), prog=f"hf-vq {verb}", description=description, allow_abbrev=False)
    fields = {entry.name: entry for cls in types for entry in dataclasses.fields(cls) if entry.init}
    mappings = {name for cls in types for name, kind in get_type_hints(cls).items() if dict in get_args(kind)}
    aliases, renamed = aliases or {}, renamed or {}
    parser.add_argument("--recipe", default=None, help="YAML file with any of these options; flags override it")
    for flag, name in aliases.items():
        action = parser._option_string_actions[f"--{flag}"] = parser._option_string_actions[f"--{name}"]
        action.option_strings = [*action.option_strings, f"--{flag}"]
    for name in [positional] if isinstance(positional, str) else positional:
        parser.add_argument(name, nargs="?", help=f"the same as --{name}")
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        raise SystemExit(0)

    names = [argument[2:].partition("=")[0].replace("-", "_") for argument in argv if argument.startswith("--")]
    check_one_name(names, aliases | renamed, "--")
    argv = [_current_flag(argument, renamed) for argument in argv]
    flags = {*fields, "recipe", *aliases} | {f"no_{name}" for name in fields if fields[name].default is True}
    argv, entries = _split_mapping_entries(argv, mappings, flags)
    for action in parser._actions:  # leave defaults to the dataclasses: here only what was given counts
        action.required, action.default = False, argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    read = functools.partial(_recipe_values, parser, fields, (aliases, renamed), mappings)
    keys = keys or {}
    recipe = given.pop("recipe", None)
    values = {**({} if recipe is None else read(recipe)), **given}
    for name in mappings & set(values):
        if isinstance(values[name], str) and values[name].lstrip().startswith("{"):
            values[name] = read_yaml(values[name], f"--{name}")
    single: dict[str, dict[str, Any]] = {}
    for name, key, text in entries:
        single.setdefault(name, {})[key] = read_yaml(text, f"--{name}.{key}")
    values = _renewed(values, keys)
    for name, one_by_one in single.items():
        owner, former = keys[name](values) if name in keys else (name, {})
        values[name] = as_mapping(name, values.get(name)) | with_new_names(one_by_one, former, owner)
    if continues is not None:
        values = continues(values, fields, mappings, lambda path: _renewed(read(path), keys))
    for name, entry in fields.items():
        if name not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing: give it as --{name} or in a recipe")
    with _telling_place(() if recipe is None else values.keys() - given.keys(), recipe):
        return (*_filled(parser, values), values)


def _filled(parser, values):
    parsed = parser.parse_dict(values)
    for options in parsed:
        check_fields(options)
    return parsed


@contextlib.contextmanager
def _telling_place(names: Collection[str], recipe: Any) -> Iterator[None]:
    """Within the `with` block: an error about an option of these names says where the recipe has it."""
    try:
        yield
    except ValueError as error:
        name = re.split(r"[ =\[]", str(error))[0]
        if name not in names:
            raise
        raise ValueError(f"{error} ({place_of(name, recipe)})") from error


def _renewed(values, keys):
    """Values with the keys of mapping options by their names today."""
    owners = {name: find(values) for name, find in keys.items() if name in values}
    renewed = {
        name: with_new_names(as_mapping(name, values[name]), former, owner) for name, (owner, former) in owners.items()
    }
    return values | renewed


def _recipe_values(parser, fields, spellings, mappings, path):
    """The values of a recipe by today's names, of the types of flags; `spellings`: aliases, and renamed options."""
    aliases, renamed = spellings
    values = read_recipe(path)
    check_one_name(values, aliases | renamed)
    values = {aliases.get(name, name): value for name, value in values.items()}
    values = {_current(name, renamed): value for name, value in values.items()}
    check_names(values, fields, f"key in the recipe {path}:")
    return {name: _convert(parser, name, value, mappings, path) for name, value in values.items()}


def _current(name, renamed, dashes=""):
    """The name of an option today; an older one is told."""
    if name not in renamed:
        return name
    print(f"{dashes}{name} is now {dashes}{renamed[name]}", file=sys.stderr)
    return renamed[name]


def _current_flag(argument, renamed):
    flag, equals, value = argument.partition("=")
    return "--" + _current(flag[2:], renamed, "--") + equals + value if flag.startswith("--") else argument


def _split_mapping_entries(argv, mappings, flags):
    """Take the flags `--mapping.key value` out of a command line, and check the names of all flags.

    Returns:
        The rest of the command line, and a list of (mapping, key, value).
    """
    rest, entries, arguments = [], [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name, dot, key = flag[2:].replace("-", "_").partition(".")
        if not flag.startswith("--"):
            rest.append(argument)
        elif dot and name in mappings:
            if not equals and (value := next(arguments, None)) is None:
                raise ValueError(f"{flag} needs a value")
            entries.append((name, key, value))
        elif name not in flags or dot:
            raise ValueError(f"unknown option {flag}{nearest(name, flags)}")
        else:
            rest.append(argument)
    return rest, entries


def _convert(parser, name, value, mappings, recipe):
    """Give a value of a recipe the type of its option, as a flag with the same text would have."""
    if value is None or name in mappings:
        return value
    action = parser._option_string_actions[f"--{name}"]
    items = value if isinstance(value, list) and action.nargs == "+" else [value]
    try:
        if any(isinstance(item, list | dict) for item in items):
            raise ValueError("one value is needed")
        items = [parser._get_value(action, str(item)) for item in items]
        for item in items:
            parser._check_value(action, item)
    except (ValueError, argparse.ArgumentError) as error:
        reason = error.message if isinstance(error, argparse.ArgumentError) else error
        raise ValueError(f"recipe key {name!r} ({place_of(name, recipe)}): {reason}") from error
    return items if action.nargs == "+" else items[0]
