"""The house: who may import whom, how long files and functions are, and which signatures tell their types."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down: a room imports what stands on a lower floor, never its own floor or one above.
FLOORS = (
    {"hf_vq_cli"},
    {"cli", "demo"},
    {"training", "converters"},
    {"__init__"},
    {"auto"},
    {"pipelines"},
    {"autoencoders", "priors"},
    {"modalities"},
    {"quantizers", "networks", "losses", "metrics", "data", "hub"},
    {"grids", "modes", "processes", "registry", "renaming", "saved", "single_file", "version"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BOTTOM = len(FLOORS) - 1  # its files may import each other
UPWARD = {  # imports that may point up, within a function, and why
    ("hf_vq.single_file", "hf_vq.converters"): "from_single_file is a method of models, and converters build models",
}
LONGEST_FILE, LONGEST_FUNCTION = 500, 80  # lines


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def sources():
    """Trees of our modules by name."""
    paths = [*sorted((ROOT / "hf_vq").rglob("*.py")), ROOT / "hf_vq_cli.py"]
    return {module_name(path): parse(path) for path in paths}


def imports(modules):
    """What each module imports of the others, in functions too: a dict of sets of module names."""
    graph = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                within = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name].update(full if full in modules else node.module for full in within)
            elif isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names)
    return {name: {one for one in found if one in modules and one != name} for name, found in graph.items()}


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else {"hf_vq": "__init__"}.get(module, module)


def find_cycle(graph):
    """The names around a cycle of a dict of sets; None where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]


def misplaced(graph):
    """Imports that point up, or to a neighbour on the same floor."""
    return sorted(
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if room(name) != room(target)
        and FLOOR[room(target)] <= FLOOR[room(name)]
        and not FLOOR[room(target)] == FLOOR[room(name)] == BOTTOM
        and (name, target) not in UPWARD
    )


def test_every_room_has_its_floor():
    assert {room(name) for name in sources()} <= set(FLOOR)


def test_there_is_no_import_cycle_but_those_with_a_reason():
    graph = imports(sources())
    for name, target in UPWARD:
        graph[name].remove(target)  # a KeyError where the reason has gone
    assert find_cycle(graph) is None


def test_imports_point_down():
    assert misplaced(imports(sources())) == []


def test_autoencoders_and_priors_do_not_know_each_other():
    graph = imports(sources())
    for one, other in (("autoencoders", "priors"), ("priors", "autoencoders")):
        assert not [(name, each) for name in graph if room(name) == one for each in graph[name] if room(each) == other]


def test_these_checks_see_a_violation():
    def graph_with(name, line):
        modules = sources()
        return imports(modules | {name: ast.parse(f"{ast.unparse(modules[name])}\n{line}\n")})

    lazily = "def later():\n    from hf_vq.quantizers import make_quantizer"
    assert find_cycle(graph_with("hf_vq.quantizers.checks", lazily)) is not None
    neighbour = ("hf_vq.hub.cards", "hf_vq.metrics.codebook")
    assert misplaced(graph_with(neighbour[0], "import hf_vq.metrics.codebook")) == [neighbour]
    assert misplaced(graph_with("hf_vq.grids", "from hf_vq import auto")) == [("hf_vq.grids", "hf_vq.auto")]


@pytest.mark.parametrize("folder", ["hf_vq", "tests", "benchmarks", "examples"])
def test_files_and_functions_are_short(folder):
    long = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []
