"""YAML of recipes and flags, read strictly: one mapping of words to values, with nothing twice and nothing hidden."""

import re
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 16  # nodes within nodes; options of options of quantizers are four deep


class RecipeLoader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, in which 1e-3 is a string; here it is the number that everybody means.

    It refuses what PyYAML lets pass: keys that are there twice or are no words, aliases (a few lines of which make
    gigabytes), and nesting that nobody can read.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} is an alias: write it out", problem_mark=event.start_mark
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {DEEPEST}", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            where = {"problem_mark": key.start_mark}
            if key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise yaml.MarkedYAMLError(problem=f"the key {shown} is no word", **where)
            if key.value in lines:
                first = lines[key.value]
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is also in line {first}", **where)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def read_yaml(text: str, what: str) -> Any:
    """Parse YAML; a ValueError of one line says what could not be parsed, and in which line."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{what} is not valid YAML{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character, or a number or date that is none
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe: a YAML file that holds one mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from error
    recipe = read_yaml(text, f"the recipe {path}")
    if not isinstance(recipe, dict):
        raise ValueError(
            f"the recipe {path} must be a mapping of option names to values, got a {type(recipe).__name__}"
        )
    return recipe


def place_of(name: str, path: str | Path) -> str:
    """Where a recipe has a key, for messages: its path and, where the key is found in it, the line."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if re.match(rf"\s*['\"]?{re.escape(name)}['\"]?\s*:", line):
            return f"{path}, line {number}"
    return str(path)
