"""YAML of recipes and flags, read strictly: one mapping of words to values, with nothing twice and nothing hidden."""

import re
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 16  # nodes within nodes; options of options of quantizers are four deep
MOST_NODES = 10_000  # with those that aliases repeat
WORDS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # tags of keys


class RecipeLoader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, in which 1e-3 is a string; here it is the number that everybody means.

    It refuses what PyYAML lets pass: keys that are there twice or are no words, aliases that make much of few lines,
    and nesting that nobody can read.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.depth, self.nodes = 0, 0  # of the nodes that are open; so far, with those that aliases repeat
        self.heights = [0]  # of what is within each open node
        self.measures: dict[int, tuple[int, int]] = {}  # nodes and height of every node that is whole

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.peek_event(), self.nodes
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.measures:
                self._refuse(f"*{event.anchor} is within what it stands for", event)
            nodes, height = self.measures[id(node)]
            self._check(event, nodes, height)
        else:
            self._check(event, 1, 1)
            self.depth += 1
            self.heights.append(0)
            node = super().compose_node(parent, index)
            self.depth -= 1
            nodes, height = 1, self.heights.pop() + 1
            self.measures[id(node)] = self.nodes - before + 1, height
        self.nodes += nodes
        self.heights[-1] = max(self.heights[-1], height)
        return node

    def _check(self, event, nodes, height):
        if self.depth + height > DEEPEST:
            self._refuse(f"it is nested deeper than {DEEPEST}", event)
        if self.nodes + nodes > MOST_NODES:
            self._refuse(f"it holds more than {MOST_NODES} values, those that aliases repeat among them", event)

    def _refuse(self, problem, place):
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in WORDS:
                shown = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                self._refuse(f"the key {shown} is no word", key)
            if key.value in lines:
                self._refuse(f"the key {key.value!r} is also in line {lines[key.value]}", key)
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # of a tag, or of what looks like a date
            why = f": {error}" if isinstance(error, ValueError) else ""
            problem = f"{node.value!r:.60} is no {node.tag.rpartition(':')[2]}{why}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(values: dict[str, Any], **layout: Any) -> str:
    """YAML of values, in their order and without aliases; `layout`: options of `yaml.dump`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **layout)


def read_yaml(text: str, what: str) -> Any:
    """Parse YAML; a ValueError of one line says what could not be parsed, and in which line."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{what} is not valid YAML{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character
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
