"""What `hf-vq VERB --help` prints: an example, the options that it names, then all others by what they are of.

The texts are also kept in files, so that `--help` needs neither torch nor transformers: `make help` writes them anew
after a change of options.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

WIDTH, INDENT = 100, 28
NOUNS = {int: "INT", float: "FLOAT", str: "TEXT", dict: "MAPPING"}


@dataclasses.dataclass(frozen=True)
class Manual:
    """What the help of a verb says besides its options.

    Attributes:
        verb: "train prior".
        description: one sentence.
        example: command lines; the options in them come first.
        positional: options that need no flag, in their order.
        first: options that come after those, before those of the example.
        closing: last sentence, "" for none.
        words: explanations of options that take the place of their own.
        hidden: options that are left out, as `closing` says.
        rest: option, of several values, of the words without a flag behind those of `positional`, or in the place of
            one of them that has its flag.
    """

    verb: str
    description: str
    example: str
    positional: Sequence[str]
    first: Sequence[str] = ()
    closing: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    rest: str | None = None

    def text(self, types: Iterable[type], aliases: Mapping[str, str]) -> str:
        """The help.

        Args:
            types: dataclasses of the options.
            aliases: options by their other names.
        """
        places = " ".join(f"[{name.upper()}]" for name in self.positional)
        places += "" if self.rest is None else f" [{self.rest.upper()} ...]"
        sections = [f"usage: hf-vq {self.verb} {places} [options]", self.description]
        sections.append("example:\n" + textwrap.indent(self.example.strip(), "  "))
        named = [aliases.get(name, name) for name in re.findall(r"--(\w+)", self.example)]
        first = [*self.positional, *self.first, *named]
        groups: dict[str, list[tuple[str, str]]] = {"main options": []}
        entries = {}
        for kind, entry, title in fields_of(types):
            if entry.name not in self.hidden or entry.name in first:
                words = self.words.get(entry.name) or str(entry.metadata.get("help") or "")
                others = [name for name in aliases if aliases[name] == entry.name]
                entries[entry.name] = described(entry, kind, words, others)
                groups.setdefault(title, [])
                if entry.name not in first:
                    groups[title].append(entries[entry.name])
        entries["recipe"] = ("--recipe FILE", "YAML file with any of these options; flags override it")
        groups["main options"] = [entries.pop(name) for name in dict.fromkeys(first) if name in entries]
        if "recipe" in entries:
            groups["main options"].append(entries["recipe"])
        sections += [f"{title}:\n" + "\n".join(map(laid_out, group)) for title, group in groups.items() if group]
        return "\n\n".join([*sections, *filter(None, [filled(self.closing)])]) + "\n"


def fields_of(types: Iterable[type]) -> Iterable[tuple[Any, dataclasses.Field, str]]:
    """Type, field and title of the group of every option: the first words of the class that has it."""
    for options in types:
        kinds = get_type_hints(options)
        for entry in dataclasses.fields(options):
            if entry.init:
                owners = [each for each in options.__mro__ if entry.name in vars(each).get("__annotations__", {})]
                ours = [each for each in owners if each.__module__.startswith("hf_vq")]
                title = re.split(r"[.,:;]", (ours[-1] if ours else options).__doc__ or "")[0]
                yield kinds[entry.name], entry, title[:1].lower() + title[1:]


def described(entry: dataclasses.Field, kind: Any, words: str, others: Iterable[str]) -> tuple[str, str]:
    """Flag and explanation of an option, of some words; `others`: its other names."""
    flag = f"--{entry.name}"
    if noun := noun_of(kind):
        flag += f" [{noun}]" if entry.metadata.get("nargs") == "?" else f" {noun}"
    if not any(entry.default is nothing for nothing in (None, False, dataclasses.MISSING)):
        words += f" (default: {entry.default}" + (f"; --no_{entry.name})" if entry.default is True else ")")
    if others := sorted(set(others)):
        words += f" (also --{', --'.join(others)})"
    return flag, words


def noun_of(kind: Any) -> str:
    """What stands for the value of an option, such as INT; nothing for a switch."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"{noun_of(get_args(kind)[0])} ..."
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        return "MAPPING" if dict in parts else noun_of(parts[0])
    return "" if kind is bool else NOUNS.get(kind, "TEXT")


def laid_out(option: tuple[str, str]) -> str:
    flag, words = option
    lines = textwrap.wrap(words, WIDTH - INDENT, break_on_hyphens=False) or [""]
    start = f"  {flag}"
    if len(start) > INDENT - 2:
        return "\n".join([start, *(" " * INDENT + line for line in lines)])
    return "\n".join([f"{start:{INDENT}}{lines[0]}".rstrip(), *(" " * INDENT + line for line in lines[1:])])


def filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
