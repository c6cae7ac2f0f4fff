"""Options of the verbs: dataclasses, filled from a YAML recipe and from flags, flags first."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast, get_args, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_vq.arguments import check_fields
from hf_vq.cli.aliases import NAMES, VALUES
from hf_vq.cli.manual import Manual
from hf_vq.cli.reading import place_of, read_recipe, read_yaml
from hf_vq.renaming import with_new_names

REST = "words behind"
RECIPES = (".yaml", ".yml")


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


class Keys(NamedTuple):
    """Who has the keys of a mapping option, and other names of them.

    Attributes:
        owner: such as "VQVAE".
        former: names of today by older ones, which are told.
        alike: its names by those of other owners, which are understood alike.
    """

    owner: str
    former: dict[str, str]
    alike: dict[str, str]


def parse_options(
    types: Sequence[type],
    argv: list[str],
    manual: Manual,
    *,
    aliases: dict[str, str] | None = None,
    renamed: dict[str, str] | None = None,
    keys: dict[str, Callable[[dict[str, Any]], Keys]] | None = None,
    known_keys: dict[str, Callable[[], Collection[str]]] | None = None,
    continues: Callable[..., dict[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Fill option dataclasses from a recipe and flags.

    Args:
        types: dataclasses with distinct field names. A field of type `dict | str | None` is a mapping; one of its
            keys is set by a flag such as `--model_config.codebook_size 32`.
        argv: list of str, the command line after the verb.
        manual: what the verb is, and which options need no flag. A first word that ends in .yaml is a recipe.
        aliases: other spellings of options, besides those of `hf_vq.cli.aliases`.
        renamed: older spellings, which are told on stderr, {"level": "grid"}.
        keys: of mapping options, by name: `keys(values)` tells by what was given who has the keys, and their names.
        known_keys: of mapping options, by name: all keys that there may be, for messages.
        continues: completes what was given from an earlier run, see `hf_vq.cli.resuming.continued`.

    Returns:
        tuple of one filled dataclass per type, then a dict of what was given (by recipe or flag), defaults left out.

    Raises:
        ValueError: an unknown or misspelled name (names the nearest one), an option under two names, or a value of
            the wrong type.
    """
    fields = {entry.name: entry for cls in types for entry in dataclasses.fields(cls) if entry.init}
    mappings = {name for cls in types for name, kind in get_type_hints(cls).items() if dict in get_args(kind)}
    aliases = {other: name for other, name in NAMES.items() if name in fields and other not in fields} | (
        aliases or {}
    )
    renamed, keys = renamed or {}, keys or {}
    for name, entry in fields.items():
        aliases |= {other.lstrip("-"): name for other in entry.metadata.get("aliases", ())}
    if "-h" in argv or "--help" in argv:
        print(manual.text(types, aliases), end="")
        raise SystemExit(0)
    parser = _make_parser(types, manual, aliases)
    names = [argument[2:].partition("=")[0].replace("-", "_") for argument in argv if argument.startswith("--")]
    check_one_name(names, aliases | renamed, "--")
    argv = [_current_flag(argument, renamed) for argument in argv]
    flags = {*fields, "recipe", *aliases, *_combined(fields)}
    flags |= {f"no_{name}" for name in fields if fields[name].default is True}
    argv, entries = _split_mapping_entries(argv, mappings, flags, known_keys or {})
    given = _placed(vars(parser.parse_intermixed_args(argv)), manual)
    read = functools.partial(_recipe_values, parser, fields, (aliases, renamed), mappings)
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
        known = keys[name](values) if name in keys else Keys(name, {}, {})
        values[name] = as_mapping(name, values.get(name)) | _with_names_of(known, one_by_one)
    if continues is not None:
        values = continues(values, fields, mappings, lambda path: _renewed(read(path), keys))
    for name, entry in fields.items():
        required = entry.default is entry.default_factory is dataclasses.MISSING or name == "output_dir"
        if name not in values and required:
            raise ValueError(f"{name} is missing: give it as --{name} or in a recipe")
    with _telling_place(() if recipe is None else values.keys() - given.keys(), recipe):
        return (*_filled(parser, values), values)


def _make_parser(types, manual, aliases):
    """A parser that leaves defaults to the dataclasses: in what it finds, only what was given counts."""
    parser = _Parser(cast(Any, types), prog=f"hf-vq {manual.verb}", add_help=False, allow_abbrev=False)
    fields = {entry.name for cls in types for entry in dataclasses.fields(cls)}
    parser.add_argument("--recipe")
    for other, name in aliases.items():
        action = parser._option_string_actions[f"--{other}"] = parser._option_string_actions[f"--{name}"]
        action.option_strings = [*dict.fromkeys([*action.option_strings, f"--{other}"])]
    for name, choices in _combined(fields).items():
        parser.add_argument(f"--{name}", choices=list(choices))
    for place in range(len(manual.positional) + 1):  # one for a recipe
        parser.add_argument(_place(place), nargs="?")
    if manual.rest is not None:
        parser.add_argument(REST, nargs="*")
    for action in parser._actions:
        action.required, action.default = False, argparse.SUPPRESS
        if action.type is string_to_bool:  # also of options that may be None
            action.nargs, action.const = "?", True
    return parser


def _combined(fields):
    """Names of others whose values say what several of these options are."""
    return {
        name: values
        for name, values in VALUES.items()
        if all(values_of.keys() <= set(fields) for values_of in values.values()) and name not in fields
    }


def _place(number):
    return f"word {number + 1}"


def _placed(given, manual):
    """What a parser found, by name of the option: words without a flag, and names that stand for several options."""
    positional, rest = manual.positional, manual.rest
    words = [given.pop(_place(number)) for number in range(len(positional) + 1) if _place(number) in given]
    words += given.pop(REST, None) or []
    names = ["recipe", *positional] if words and str(words[0]).endswith(RECIPES) else positional
    if rest is not None and rest not in given:
        names = [name for name in names if name not in given]
        words, behind = words[: len(names)], words[len(names) :]
        given |= {rest: behind} if behind else {}
    for word in words[len(names) :]:
        raise ValueError(f"unrecognized word {word!r}: give it to one of the options, such as --{names[-1]}")
    for name, word in zip(names, words, strict=False):
        if name in given:
            raise ValueError(f"{word!r} without a flag is --{name}, which is also given as {given[name]!r}")
        given[name] = word
    return _spread(given, "--")


def _spread(values, dashes=""):
    """Values with those of `VALUES` as the options that they stand for."""
    for name in VALUES.keys() & values.keys():
        value = {False: "no"}.get(values[name], values[name])  # of YAML
        if value not in VALUES[name]:
            raise ValueError(f"{dashes}{name}={value!r} must be one of {', '.join(VALUES[name])}")
        meant = VALUES[name][value]
        for option, setting in meant.items():
            if values.get(option, setting) != setting:
                raise ValueError(
                    f"{dashes}{name}={value} means {option}={setting}, got {option}={values[option]!r} too"
                )
        values = {key: item for key, item in values.items() if key != name} | meant
    return values


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
    known = {name: find(values) for name, find in keys.items() if name in values}
    return values | {name: _with_names_of(each, as_mapping(name, values[name])) for name, each in known.items()}


def _with_names_of(keys, values):
    """Values by the names that the owner of the keys has for them."""
    check_one_name(values, keys.alike)
    return with_new_names({keys.alike.get(key, key): value for key, value in values.items()}, keys.former, keys.owner)


def _recipe_values(parser, fields, spellings, mappings, path):
    """The values of a recipe by today's names, of the types of flags; `spellings`: aliases, and renamed options."""
    aliases, renamed = spellings
    values = read_recipe(path)
    check_one_name(values, aliases | renamed)
    values = {aliases.get(name, name): value for name, value in values.items()}
    values = {_current(name, renamed): value for name, value in values.items()}
    check_names(values, {*fields, *_combined(fields)}, f"key in the recipe {path}:")
    values = _spread(values)
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


def _split_mapping_entries(argv, mappings, flags, known_keys):
    """Take the flags `--mapping.key value` out of a command line, and check the names of all flags.

    A name that is not known, but as a key of a mapping, gets that advice.

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
            within = next((owner for owner, find in known_keys.items() if name in find()), None)
            advice = nearest(name, flags) if within is None else f", did you mean '--{within}.{name}'?"
            raise ValueError(f"unknown option {flag}{advice}")
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
