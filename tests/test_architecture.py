"""The house: who may import whom, how long files and functions are, and which signatures tell their types."""

import ast
import re
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
    {"features"},
    {"auto"},
    {"pipelines"},
    {"autoencoders", "priors"},
    {"modalities", "tokens"},
    {"hub"},
    {"quantizers", "networks", "losses", "metrics", "data"},
    {
        "arguments",
        "figures",
        "grids",
        "hosts",
        "modes",
        "plugins",
        "processes",
        "published",
        "quiet",
        "ranges",
        "registry",
        "renaming",
        "saved",
        "single_file",
        "version",
        "weights",
        "writing",
    },
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


def test_the_page_names_what_there_is():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    _, house, text = page.split("```")
    parents = [ROOT]  # of what stands on a line, by how far it is indented
    for line in house.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folder = parents[depth]
        for name in re.findall(r"\b\w+(?:/|\.py\b)", line):
            assert (folder / name).exists(), line
            if name.endswith("/"):
                folder /= name
                parents[depth + 1 :] = [folder]
    words = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("hf_vq/**/*.py"))))
    for code in re.findall(r"`([^`]+)`", text):
        if "/" in code:
            assert (ROOT / code).exists(), code
        else:
            assert set(re.findall(r"\w{2,}", code)) <= words, code


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
    neighbour = ("hf_vq.data.codes", "hf_vq.metrics.codebook")
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


def public_functions(body, owner=None):
    """Functions and methods without a leading underscore, nor one of their class, and the class of each."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            yield node, owner


def untyped_parts(function, owner):
    """Names of the parameters without a type, and "return" where the result has none."""
    arguments, decorators = function.args, [ast.unparse(one) for one in function.decorator_list]
    bound = owner is not None and "staticmethod" not in decorators  # self or cls
    parameters = [*arguments.posonlyargs, *arguments.args][bound:]
    parameters += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    untyped = [parameter.arg for parameter in parameters if parameter.annotation is None]
    return untyped + ["return"] * (function.returns is None and function.name != "__init__")


def test_public_signatures_have_types():
    untyped = []
    for path in sorted((ROOT / "hf_vq").rglob("*.py")):
        name = path.relative_to(ROOT / "hf_vq").as_posix()
        for function, owner in public_functions(parse(path).body):
            untyped += [f"{name}: {function.name}: {part}" for part in untyped_parts(function, owner)]
    assert untyped == []


def test_a_missing_type_is_seen():
    tree = ast.parse("class A:\n    def f(self, a: int, *b, c=1, **d: int): ...\n\ndef _g(a): ...\n")
    assert [untyped_parts(*one) for one in public_functions(tree.body)] == [["c", "b", "return"]]
