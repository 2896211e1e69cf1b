# SPDX-License-Identifier: Apache-2.0
"""The repository keeps its own rules: what is shipped loads, what is documented exists, what is copied runs."""

import ast
import csv
import graphlib
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import result_tables
import torch
from accelerate.commands.config.config_args import load_config_from_file
from pages import PAGES, command_lines
from tiny_run import RECIPES, ROOT

from benchmark_tasks import choose_tasks, read_benchmarks
from model.llama import build_model, count_module_parameters
from recipe_loading import load_recipe


RECIPE_FILES = sorted(path for path in RECIPES.glob("*/*.yaml") if path.parent.name != "experiments")
# What each room and each file that every command reads may import of the others, from the bottom up. Commands may
# import all of these, and nothing imports a command.
ARROWS = {
    "amounts": set(),
    "recipe_config": {"amounts"},
    "atomic_files": {"recipe_config"},
    "file_hashes": {"atomic_files"},
    "card_text": {"recipe_config"},
    "sources": {"atomic_files", "recipe_config"},
    "summaries": {"recipe_config"},
    "conversations": {"recipe_config", "sources", "summaries"},
    "planning": {"recipe_config", "vocabulary"},
    "machine_limits": set(),
    "recipe_loading": {"atomic_files", "child_processes", "machine_limits", "planning", "recipe_config"},
    "stages": {"atomic_files", "file_hashes", "recipe_config", "sources"},
    "child_processes": {"atomic_files"},
    "launching": {"atomic_files", "recipe_config", "recipe_loading", "stages"},
    "recorded_files": {"atomic_files"},
    "run_folder": {"atomic_files", "file_hashes", "recipe_config", "stages"},
    "corpus": {"atomic_files", "card_text", "recipe_config", "sources"},
    "vocabulary": {"card_text", "child_processes", "corpus", "recipe_config"},
    "public_texts": set(),
    "mixture": {"corpus", "recipe_config", "vocabulary"},
    "model": {"mixture", "planning", "recipe_config", "vocabulary"},
    "recovery": {
        "atomic_files",
        "child_processes",
        "machine_limits",
        "mixture",
        "recipe_config",
        "recorded_files",
        "run_folder",
        "stages",
    },
    "training": {
        "atomic_files",
        "file_hashes",
        "launching",
        "mixture",
        "model",
        "planning",
        "recipe_config",
        "recovery",
        "recorded_files",
        "run_folder",
        "stages",
        "vocabulary",
    },
    "sweeps": {
        "atomic_files",
        "child_processes",
        "launching",
        "planning",
        "recipe_config",
        "recipe_loading",
        "recovery",
        "run_folder",
        "stages",
    },
    "provenance": {"atomic_files", "corpus", "mixture", "recipe_config", "vocabulary"},
    "publishing": {
        "atomic_files",
        "card_text",
        "corpus",
        "planning",
        "provenance",
        "recipe_config",
        "recovery",
        "recorded_files",
        "run_folder",
        "sources",
        "stages",
        "vocabulary",
    },
}
# Functions that a constant may be computed with when a script is imported.
COMPUTING = re.compile(
    "array|bytes|chr|list_|compile|dtype|enumerate|exp|float|fromkeys|frozenset|getLogger|iinfo|int64|isalnum|items|join|range|replace|"
    "resolve|schema|sorted|startswith|strerror|string|tuple|uint64|upper|capitalize|values|zeros|bytes_to_unicode|chinchilla_frontier|"
    "accuracy|weighted_f1|counted_f1|answer_metric|mean_of|numbers_match|normalised|model_dump|withStroke|tatqa_scores|maketrans"
)
# Phrases that a reader has to translate, with the field's own words.
WORN_PHRASES = {
    r"gone on (from|with)|(go|goes|going) on (from|with|where)": "resume, continue",
    r"\bforet(ell|old)\b(?![`\"'])": "predict",
    r"yardstick": "baseline",
    r"double of the Hub": "mock Hub",
    r"(passed|passes|passing) over (?!the documents)": "skip",
    r"\b(is|was|were|be|been|yet|model) taught\b": "fine-tuned",
    r"at hand\b": "available",
    r"made anew|makes (it|them) anew": "rebuild",
    r"of which the": "a sentence of its own",
    r"See above": "a docstring that says it",
    r"that is none\b(?! of)": "not a",
    r"held within|(kept|keeps) to the": "limited by",
    r"\bwas told\b|\bis told\b|\bare told\b": "printed, reported",
    r"\d entries\b": "vocabulary size",
    r"asked and (was )?delivered|asked/delivered": "target, actual",
    r"lies in (the|a) folder": "is in",
    r"which roads?\b|roads? to take": "approach",
    r"worth it[.,]": "a number",
    r"had begun\b|was begun\b|not begun\b": "started",
    r"laid over it": "overlay",
}
PACKAGES = sorted(path.parent.name for path in RECIPES.glob("*/__init__.py"))
STEPS = sorted(path for package in PACKAGES for path in (RECIPES / package).glob("[!_]*.py"))
EVAL_PACKAGES = ("metrics", "sections")
SECTIONS = sorted(path for package in EVAL_PACKAGES for path in (ROOT / "eval" / package).rglob("[!_]*.py"))
SCRIPTS = sorted([*RECIPES.glob("*.py"), *STEPS, *(ROOT / "eval").glob("*.py"), *SECTIONS])
MEASURED = ROOT / "tests" / "benchmarks" / "results"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", RECIPE_FILES, ids=relative)
def test_every_shipped_recipe_loads_and_its_model_has_the_parameters_its_comment_states(path):
    # A size is laid over a recipe; any will do.
    recipe = load_recipe([RECIPES / "custom" / "base.yaml", path] if path.parent.name == "sizes" else [path])
    with torch.device("meta"):
        counted = count_module_parameters(build_model(recipe, recipe.tokenizer.vocab_size))
    stated = re.search(r"^model:  # ([\d,]+) parameters with a vocabulary of ([\d,]+)", path.read_text(), re.MULTILINE)
    if stated:
        assert counted["total"] == int(stated[1].replace(",", ""))
        assert recipe.tokenizer.vocab_size == int(stated[2].replace(",", ""))
    else:
        shaped = "base:" in path.read_text() or recipe.model.from_pretrained
        assert shaped, "a recipe that sets a new model states its parameters"
    choose_tasks(recipe.evaluation.tasks, read_benchmarks(), noncommercial=False)


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=relative)
def test_accelerates_own_parser_loads_every_launch_file(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_machines == (2 if path.stem == "multi_node" else 1)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import works in no script"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_a_script_imports_flat_siblings_and_direct_requirements_only(path):
    folder = RECIPES if path in STEPS else ROOT / "eval" if path in SECTIONS else path.parent
    siblings = {script.stem for script in folder.glob("*.py")}
    siblings |= set(PACKAGES if folder == RECIPES else EVAL_PACKAGES)
    listed = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    documents = (RECIPES / "requirements-documents.txt").read_text()
    # What uses them says how to install them.
    optional = (
        "gradio",
        "deepspeed",
        "compressed_rtf",
        "docx",
        "gguf",
        "xllamacpp",
        "oxmsg",
        "pptx",
        "pypdfium2",
        "selectolax",
        "striprtf",
    )
    listed += optional + tuple(re.findall(r"^([\w.-]+)==", documents, re.MULTILINE))
    packages = importlib.metadata.packages_distributions() | {name: [name] for name in optional}
    for name in imports(path) - siblings - set(sys.stdlib_module_names):
        distributions = {d.lower().replace("_", "-") for d in packages.get(name, [])}
        assert distributions & {d.lower().replace("_", "-") for d in listed}, f"{path.name}: {name}"


def test_imports_run_one_way():
    rooms = {name for name in ARROWS if name in PACKAGES}
    assert rooms == set(PACKAGES)
    tuple(graphlib.TopologicalSorter(ARROWS).static_order())  # raises where arrows form a circle
    ours = set(PACKAGES) | {path.stem for path in RECIPES.glob("*.py")}
    found: dict[str, set[str]] = {name: set() for name in ARROWS}
    for path in [*RECIPES.glob("*.py"), *STEPS]:
        importer = path.parent.name if path in STEPS else path.stem
        for imported in (imports(path) & ours) - {importer}:
            assert imported in ARROWS, f"{relative(path)} imports the command {imported}.py"
            if importer in ARROWS:
                assert imported in ARROWS[importer], f"{relative(path)}: {importer} may not import {imported}"
                found[importer].add(imported)
    assert found == ARROWS, "an arrow that no import needs any more"


def test_no_script_or_room_is_named_like_a_module():
    names = {path.stem for path in SCRIPTS} | {*PACKAGES, *EVAL_PACKAGES}
    assert not names & {"utils", "common", "helpers", *sys.stdlib_module_names}
    code = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    command = [sys.executable, "-I", "-c", code, *sorted(names)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []


def test_recipes_and_eval_import_nothing_from_each_other():
    recipes, evals = ({path.stem for path in (ROOT / folder).glob("*.py")} for folder in ("recipes", "eval"))
    assert not recipes & evals
    for folder, others in (("recipes", evals | set(EVAL_PACKAGES)), ("eval", recipes | set(PACKAGES))):
        for path in [*(ROOT / folder).glob("*.py"), *(STEPS if folder == "recipes" else SECTIONS)]:
            assert not imports(path) & others, path


def test_importing_a_script_defines_and_does_nothing():
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for path in SCRIPTS:
        for node in ast.parse(path.read_text()).body[1:]:
            assert isinstance(node, allowed), f"{path}:{node.lineno}"
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), f"{path}:{node.lineno}"
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                later = {part for some in ast.walk(node) if isinstance(some, ast.Lambda) for part in ast.walk(some)}
                calls = [
                    ast.unparse(call.func)
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call) and call not in later
                ]
                for name in (call.rpartition(".")[2] for call in calls):  # a class, or a function that only computes
                    assert name[0].isupper() or COMPUTING.fullmatch(name), f"{path}:{node.lineno}: {name}"


def test_nothing_downloaded_is_run_or_unpickled():
    for path in [*SCRIPTS, *RECIPES.glob("*/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.save", "eval", "exec"}:
                raise AssertionError(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
        assert not imports(path) & {"pickle", "dill", "cloudpickle"}, path


def test_every_source_file_states_its_licence():
    for path in [*SCRIPTS, *RECIPES.glob("*/*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_prose_uses_the_words_of_the_field():
    this = Path(__file__).resolve()
    kinds = ("*.py", "*.md", "*.yaml", "*.jinja", "*.sh")
    folders = [RECIPES, ROOT / "eval", ROOT / "accelerate_configs", ROOT / "tests"]
    files = [ROOT / "README.md", *(file for folder in folders for kind in kinds for file in folder.rglob(kind))]
    found = [
        f"{relative(file)}: {match[0]!r}: say: {instead}"
        for file in files
        if file != this
        for phrase, instead in WORN_PHRASES.items()
        for match in re.finditer(phrase, file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_the_first_page_is_read_in_a_minute_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_result_tables_of_pages_are_those_of_the_files_that_runs_wrote():
    filled = [path for path in PAGES if result_tables.TABLE.search(path.read_text(encoding="utf-8"))]
    domains = [ROOT / "recipes" / domain / "README.md" for domain in ("legal", "finance", "medical")]
    assert {ROOT / "README.md", *domains} <= set(filled)
    for path in filled:
        page = path.read_text(encoding="utf-8")
        assert result_tables.fill(page) == page, f"{relative(path)}: rerun: python tests/result_tables.py"


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def commands(page: Path) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in command_lines(page)]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_paths_in_a_page_exist_and_the_keys_of_its_commands_are_in_the_schema(page):
    text = page.read_text()
    # Made by a run or by the reader, so not in the repository.
    made = ("runs/", "my_texts", "path/to", "benchmarks/", "recipes/telecom", "eval/results.json")
    for target, _, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), f"{target}#{anchor}"
    quoted = re.findall(r"`((?:recipes|eval|tests|accelerate_configs)/[\w./*-]*)`", text)
    words = [word for command in commands(page) for word in command]
    named = [word for word in words if re.match(r"(recipes|eval|tests|accelerate_configs)/", word)]
    for path in quoted + named:
        assert path.startswith(made) or list(ROOT.glob(path.rstrip("/"))), path
    for command in commands(page):
        keys = [word for word in command if re.match(r"--[a-z_]+\.[a-z_.]+=", word)]
        if keys:
            configs = [word for word in command if word.endswith(".yaml") and "accelerate_configs" not in word]
            existing = [config for config in configs if not config.startswith(made)]
            load_recipe([ROOT / config for config in existing or [RECIPES / "custom" / "base.yaml"]], keys)


def test_every_measured_table_is_linked_from_a_page_and_says_how_it_was_made():
    made = {row.pop("file"): row for row in csv.DictReader((MEASURED / "measurements.csv").open(encoding="utf-8"))}
    assert set(made) | {"measurements.csv"} == {path.name for path in MEASURED.iterdir()}
    assert all(row["command"] and row["machine"] and row["date"] for row in made.values())
    tables = [*MEASURED.glob("*.csv"), *RECIPES.glob("experiments/**/*.csv"), *RECIPES.glob("*/trial/h*.csv")]
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    }
    missing = [relative(path) for path in tables if not {path, path.parents[1]} & linked]
    assert not missing, missing


def test_the_readme_gives_the_two_commands_that_ci_runs():
    two = ["bash recipes/quickstart.sh", "bash tests/run.sh"]
    for path in (ROOT / "README.md", ROOT / ".ci" / "run", ROOT / ".github" / "workflows" / "ci.yml"):
        assert all(command in path.read_text() for command in two), path


def test_requirements_are_pinned_installed_and_say_who_needs_them():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, version, who = re.fullmatch(r"([\w.-]+)==([\w.]+)  # (.+)", line).groups()
        assert importlib.metadata.version(name).split("+")[0] == version and who
    constraints = (RECIPES / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in constraints)


def test_the_top_level_holds_what_the_design_says_and_nothing_else():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    if not top:
        pytest.skip("not a git checkout")
    folders = {"recipes", "accelerate_configs", "eval", "tests"}
    assert {name for name in top if not name.startswith(".")} <= folders | {
        "README.md",
        "requirements.txt",
        "LICENSE",
        "pyproject.toml",
    }


def test_every_shell_script_parses():
    for path in [*RECIPES.rglob("*.sh"), *(ROOT / "tests").rglob("*.sh"), ROOT / ".ci" / "run"]:
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0, path


def uses(test: ast.FunctionDef, fixture: str | None) -> bool:
    return fixture is None or fixture in [argument.arg for argument in test.args.args]


def test_every_test_that_needs_an_optional_package_is_run_where_it_is_installed():
    script = (ROOT / "tests" / "run_optional.sh").read_text().replace("\\\n", "")
    runs = {}  # file -> the words that pick its tests; none: all of them
    for line in script.splitlines():
        if "-m pytest" in line:
            words = re.search(r'-k "(.+?)"', line)
            runs |= dict.fromkeys(re.findall(r"tests/\S+\.py", line), words[1].split(" or ") if words else [""])
    in_all = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    left_out = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name, places = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()).body
        tests = {place.name: place for place in places if getattr(place, "name", "").startswith("test_")}
        for place in places:
            packages = {
                call.args[0].value if isinstance(call.args[0], ast.Constant) else "several"
                for call in ast.walk(place)
                if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "importorskip"
            }
            if packages - in_all:
                fixture = getattr(place, "name", None)  # None: the whole module needs it
                skipped = [fixture] if fixture in tests else [n for n, test in tests.items() if uses(test, fixture)]
                left_out += [
                    f"{name}: {n} needs {packages}" for n in skipped if not any(w in n for w in runs.get(name, ()))
                ]
    assert runs and not left_out, f"add the file, or a word of the test's name, to run_optional.sh: {left_out}"


def test_the_legal_data_py_takes_full_english_licences_and_titles_of_articles():
    spec = importlib.util.spec_from_file_location("data", RECIPES / "legal" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    body = "Permission is granted. " * 100
    for header, kept in (
        ("key: a\nname: A", True),
        ("key: a\nlanguage: en", True),
        ("key: a\nlanguage: fr", False),
        ("key: a\nis_deprecated: yes", False),
        ("key: a\nis_generic: yes", False),
        ("key: a\nis_unknown: yes", False),
        ("key: a\nis_deprecated: no", True),
    ):
        text = module.extract_text({"text": f"---\n{header}\n---\n\n{body}"}, "licenses")
        assert text == (body.strip() if kept else None), header
    assert module.extract_text({"text": f"---\nkey: a\n---\n{body[:1000]}"}, "licenses") is None
    assert module.extract_text({"text": "no front matter"}, "licenses") is None
    article = {"title": "A", "extract": "B"}
    assert module.extract_text(article, "wikipedia") == "A\n\nB"
