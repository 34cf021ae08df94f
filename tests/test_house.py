# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""What keeps the house in order: imports, layers and a tree without machine paths."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_temporal
from trl_temporal.data.schema import validate_row

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_temporal"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each layer imports from itself and from those before it. The longest matching name counts.
LAYERS = [
    {"spans", "video", "video_backends", "losses", "models"},
    {"data"},
    {"evaluation.metrics"},
    {"synthesis", "objects"},
    {"evaluation"},
    {"hub"},
    {"trainer"},
    {"report"},
    {"cli"},
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Absolute names of all modules that a file imports, also inside functions, but not under `TYPE_CHECKING`."""
    package = path.relative_to(ROOT).parent.parts
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` and `from module import name` look alike; both are inside the base.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))


def layer_of(module):
    inside = module.removeprefix("trl_temporal.")
    matches = [
        (name.count("."), layer)
        for layer, names in enumerate(LAYERS)
        for name in names
        if inside == name or inside.startswith(f"{name}.")
    ]
    return max(matches)[1] if matches else None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_layers(path):
    module = module_name(path)
    if module == "trl_temporal":
        return  # its names are loaded lazily
    layer = layer_of(module)
    assert layer is not None, f"{module} is in no layer: add it to LAYERS"
    for imported in imported_modules(path):
        if imported.split(".")[0] == "trl_temporal":
            below = layer_of(imported)
            assert below is not None and below <= layer, f"{module} imports {imported}, which stands above it"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_trainers_and_the_cli_import_trl(path):
    if module_name(path).startswith(("trl_temporal.trainer", "trl_temporal.cli")):
        return
    assert "trl" not in {name.split(".")[0] for name in imported_modules(path)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=module_name)
def test_models_stand_alone(path):
    """A family's files travel to the Hub as remote code, where this package may be absent."""
    family = ".".join(path.relative_to(ROOT).parent.parts) + "."
    inside = [name for name in imported_modules(path) if name.split(".")[0] == "trl_temporal"]
    assert all(name.startswith(family) for name in inside), f"{module_name(path)} imports {inside}"


def test_models_need_no_more_than_transformers_does():
    """transformers refuses remote code of which an import is missing, inside functions too, but not inside `try`."""
    from transformers.dynamic_module_utils import get_imports

    there = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors", "tokenizers"}
    families = sorted((PACKAGE / "models").iterdir())
    assert {"d2vlm", "grounded_videodit"} <= {path.name for path in families}
    for path in (PACKAGE / "models").rglob("*.py"):
        assert set(get_imports(path)) - sys.stdlib_module_names <= there, module_name(path)


def test_import_is_fast_and_lazy():
    code = (
        "import sys, time; start = time.perf_counter(); import trl_temporal; "
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy: the fastest counts
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        elapsed, *loaded = result.stdout.split()
        assert loaded == ["False", "False"]
        seconds.append(float(elapsed))
    assert min(seconds) < 1


def test_public_names_import():
    assert trl_temporal.__all__
    for name in trl_temporal.__all__:
        assert getattr(trl_temporal, name) is not None


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no_such_name"):
        trl_temporal.no_such_name  # noqa: B018


def tree_files():
    """Files of the working tree that are in git or could be added to it."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_machine_paths_in_the_tree():
    folders = "root|tmp|home|work|farm|mnt|Users|opt"
    machine_path = re.compile(rf"(?<![\w.}}/<-])/(?:{folders})/")
    found = []
    for path in tree_files():
        if path.suffix in {".png", ".safetensors", ".mp4"} or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if machine_path.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [*MODULES, *sorted(ROOT.glob("tests/**/*.py")), *sorted(ROOT.glob("examples/*.py"))])
def test_files_open_with_the_licence(path):
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first == "# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0."


def readme_block(language):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL).group(1)


def test_readme_example_names_what_exists():
    imports = [node for node in ast.walk(ast.parse(readme_block("python"))) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module)
        for alias in node.names:
            assert getattr(module, alias.name) is not None


def test_readme_row_is_valid():
    validate_row(json.loads(readme_block("json")), kind="sft")
