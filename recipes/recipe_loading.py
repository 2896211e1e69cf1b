# SPDX-License-Identifier: Apache-2.0
"""Load a recipe strictly from YAML files and overrides of the command line, and report every problem at once.

In:   one or more YAML files (later ones win, mappings merge, lists are replaced) and `--section.key=value`.
Out:  a `Recipe`, or one `RecipeError` that lists every problem with its file, key path, value and remedy.
"""

import argparse
import difflib
import itertools
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from atomic_files import RECORD, read_json
from child_processes import EXIT_STOPPED
from machine_limits import explain_limit
from planning.training_rules import fill_in_training
from recipe_config import Recipe, RecipeError, Section


ALONE_SECONDS = 30.0  # processes load their libraries at different speeds
OVERRIDE = re.compile(r"--\w+\.[\w.]+=")
TILDE = re.compile(r"~[\w-]*(/|$)")
MAX_YAML_BYTES = 1_000_000
MAX_YAML_VALUES = 10_000  # with what aliases repeat, read in a second; thousands of data.skip.documents fit
MAX_YAML_LINES = 20_000  # each takes a while, in a text too
MAX_YAML_TEXT = 1 << 16  # characters of one text
MAX_YAML_ALIASES = 16  # each alias can double what a document expands to; recipes need none
MAX_YAML_DEPTH = 16
MAX_FILES = 64  # of one recipe, with every `base`
MAX_PROBLEMS = 50
NOT_TEXT = re.compile("[\0\ud800-\udfff]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Libraries that report how they are used read these: huggingface_hub, gradio and Ray.
NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False", "RAY_USAGE_STATS_ENABLED": "0"}
PROSE = {"prompts", "terms", "special_tokens", "instruction", "license", "text_template", "document_separator"}


class StrictConstructor(SafeConstructor):
    """Builds the values of a YAML text; whatever it cannot build is an error with the line.

    Attributes: root: the node of the whole text; None if it is empty.
    """

    root = None

    def construct_document(self, node):
        self.root = node
        return super().construct_document(node)

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
        except (YAMLError, RecursionError):
            raise
        except Exception as error:  # ruamel.yaml lets those of int(), float() and date() through
            kind = str(node.tag).rpartition(":")[2]
            problem = f"cannot be read as {kind}: {str(error).splitlines()[0]}"
            raise ConstructorError(None, None, problem, node.start_mark) from error
        problem = None
        if isinstance(value, str) and NOT_TEXT.search(value):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON writes emoji as pairs
            if "\0" in value or "\ufffd" in value:
                problem = "holds a character that is no text: NUL, or half of a surrogate pair"
        elif isinstance(value, int) and abs(value) >= 2**63:
            problem = "is a number of more than 64 bits"
        if problem is not None:
            raise ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        for key, _ in node.value:
            kind = str(key.tag).rpartition(":")[2]
            if not isinstance(key, ScalarNode) or kind not in ("str", "merge"):
                problem = f"a key is a word, and this is {kind}; quote it if it is meant as text"
                raise ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> tuple[Any, dict[tuple, str]]:
    """Parse one YAML text strictly.

    Returns: the plain value, and where each key path in it was written (`name:line`).
    Raises: RecipeError: not YAML 1.2, a duplicate key, a tag, too many aliases or values, too large or too deep.
    """
    try:
        if len(text.encode()) > MAX_YAML_BYTES:
            raise RecipeError(f"{name}: larger than {MAX_YAML_BYTES} bytes; a recipe is a few hundred lines")
        refuse_endless(text, name)
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = StrictConstructor
        values, origins = yaml.load(text), {}
        if yaml.constructor.root is not None:
            note_origins(yaml.constructor.root, (), name, origins)
        return values, origins
    except RecipeError:
        raise
    except Exception as error:  # a parser may have bugs that nobody has met
        what = str(getattr(error, "problem", None) or error or type(error).__name__).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(f"{name}{f':{mark.line + 1}' if mark else ''}: {what}") from error


def read_yaml_file(path: Path, or_pipe: bool = False) -> tuple[Any, dict[tuple, str]]:
    """Parse a YAML file strictly; see read_yaml.

    Args: or_pipe: what is no regular file is read too, such as /dev/stdin; it may not end.

    Raises: RecipeError: as read_yaml, or the file cannot be read.
    """
    try:
        if not or_pipe and path.exists() and not path.is_file():
            raise IsADirectoryError(0, "no file, but a folder, pipe or device; name a YAML file")
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1).decode("utf-8")  # one more, which read_yaml refuses
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        reason = reason or ("not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error))
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    return read_yaml(text, str(path))


def refuse_endless(text: str, name: str) -> None:
    """Refuse a text whose values would take long to build, without building them. Raises: RecipeError."""
    if sum(map(text.count, "\n\r\x85\u2028\u2029")) > MAX_YAML_LINES:
        raise RecipeError(f"{name}: more than {MAX_YAML_LINES} lines; put long lists into files")
    values = depth = aliases = 0  # of values, those that aliases and merge keys repeat too
    opened, sizes = [], {}  # (anchor, values before it) of the collections around; anchor -> values in it
    for event in YAML(typ="safe", pure=True).parse(text):
        where = f"{name}:{event.start_mark.line + 1}"
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        aliases += isinstance(event, AliasEvent)
        values += sizes.get(event.anchor, 1) if isinstance(event, AliasEvent) else 1
        if isinstance(event, CollectionStartEvent):
            opened.append((event.anchor, values))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = values - before
        elif isinstance(event, ScalarEvent) and len(event.value) > MAX_YAML_TEXT:
            raise RecipeError(f"{where}: a text of more than {MAX_YAML_TEXT} characters; put it into a file")
        if depth > MAX_YAML_DEPTH:
            raise RecipeError(f"{where}: nested deeper than {MAX_YAML_DEPTH} levels")
        if aliases > MAX_YAML_ALIASES:
            raise RecipeError(f"{where}: more than {MAX_YAML_ALIASES} aliases; write the values out")
        if values > MAX_YAML_VALUES:
            raise RecipeError(f"{where}: more than {MAX_YAML_VALUES} values; put long lists into files")


def note_origins(node, path: tuple, name: str, origins: dict[tuple, str]) -> None:
    """Note where the value of each key path was written. Raises: RecipeError: aliases make it too deep or large."""
    if len(path) > MAX_YAML_DEPTH:
        raise RecipeError(f"{name}: nested deeper than {MAX_YAML_DEPTH} levels")
    if len(origins) > MAX_YAML_VALUES:
        raise RecipeError(f"{name}: more than {MAX_YAML_VALUES} values, which aliases repeat; write fewer")
    origins[path] = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, MappingNode):
        for key, value in node.value:
            note_origins(value, (*path, key.value), name, origins)
            origins[*path, key.value] = f"{name}:{key.start_mark.line + 1}"
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            note_origins(value, (*path, index), name, origins)


def read_files(
    paths: list[Path], seen: tuple[Path, ...] = (), count: Iterator[int] | None = None
) -> Iterator[tuple[Path, dict, dict]]:
    """Yield (path, values, origins) of each file, after that of its `base`."""
    count = count or itertools.count(1)
    for path in paths:
        place = Path(os.path.realpath(path))  # resolve() raises where links form a circle; open() says so below
        if place in seen:
            raise RecipeError(f"{path}: base: includes the file itself; remove the circle")
        if next(count) > MAX_FILES:
            raise RecipeError(f"{path}: base: more than {MAX_FILES} files make this recipe; join some")
        values, origins = read_yaml_file(path, or_pipe=not seen)
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
        base = values.pop("base", None)
        if isinstance(values.get("run"), dict) and isinstance(folder := values["run"].get("output_dir"), str):
            values["run"]["output_dir"] = folder.replace("{folder}", place.parent.name)
        bases = [] if base is None else [base] if isinstance(base, str) else base
        if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
            raise RecipeError(f"{path}: base: expected the name of a YAML file, got {shown(base)}; several are a list")
        yield from read_files([path.parent / name for name in bases], (*seen, place), count)
        yield path, values, origins


def merge(below: dict, above: dict) -> dict:
    """Merge two mappings: inner mappings merge, any other value of `above` replaces that of `below`.

    Where `above` names another dataset by its path, the licence and address of the one below do not apply to it.
    """
    merged = dict(below)
    if above.get("path", below.get("path")) != below.get("path"):
        merged = {key: value for key, value in below.items() if key not in ("license", "url")}
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_recipe(config: list[Path | str], overrides: list[str] = ()) -> Recipe:
    """Load YAML files and `--section.key=value` overrides into a recipe.

    Raises: RecipeError: it lists every problem found.
    """
    values: dict = {}
    origins: dict[tuple, str] = {}
    extract_text = None
    for path, file_values, file_origins in read_files([Path(path) for path in config]):
        values, origins = merge(values, file_values), origins | file_origins
        if (path.parent / "data.py").is_file():
            extract_text = str(path.parent / "data.py")
    problems = []
    for override in overrides:
        key, separator, text = override.removeprefix("--").partition("=")
        if not override.startswith("--") or not separator or "." not in key:
            problems.append(f"{override}: not an option; override a key of the recipe as --section.key=value")
            continue
        value, inner = read_yaml(text, f"--{key}")
        if "#" in text and has_comment(text, value):
            problems.append(f"--{key}: # begins a comment in YAML, got {text!r}; quote the value inside the argument")
            continue
        path = tuple(key.split("."))
        if not isinstance(value, dict):  # it replaces what the files have there
            origins = {known: origin for known, origin in origins.items() if known[: len(path)] != path}
        origins |= {(*path, *below): f"--{key}" for below in [(), *inner]}
        for part in reversed(path):
            value = {part: value}
        values = merge(values, value)
    recipe, invalid = validate(values, origins)
    problems += invalid
    if recipe is not None and (reason := why_no_folder(Path(recipe.run.output_dir))):
        where = origins.get(("run", "output_dir"), "recipe")
        problems.append(f"{where}: run.output_dir: {recipe.run.output_dir} cannot be a folder: {reason}; name another")
        recipe = None
    if recipe is not None and "pretokenization" not in recipe.tokenizer.model_fields_set:
        # The default was gpt4 before; a run made then keeps its tokenizer.
        record = read_json(Path(recipe.run.output_dir) / "tokenizer" / RECORD) or {}
        made_with = record.get("settings", {}).get("pretokenization", recipe.tokenizer.pretokenization)
        recipe.tokenizer.pretokenization = made_with
    if recipe is not None and recipe.data.languages and "language" not in recipe.hub.model_fields_set:
        recipe.hub.language = list(recipe.data.languages.keep)
    if recipe is not None and recipe.data.extract_text is None:
        recipe.data.extract_text = extract_text
        if extract_text is None:
            problems.append(
                f"{config[-1]}: data.extract_text: no data.py beside the recipe; "
                "copy recipes/custom/data.py there or name a file"
            )
    if problems:
        raise RecipeError(*problems)
    return recipe


def why_no_folder(folder: Path) -> str | None:
    """Return why nothing can be in a folder, whether it exists or not; None if something can, or its mode forbids to
    look."""
    try:
        (folder / RECORD).lstat()
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        return error.strerror
    return None


def has_comment(text: str, value: Any) -> bool:
    """Return whether a comment ends a text early: another character in place of # then gives more than `value`."""
    try:
        marked, _ = read_yaml(text.replace("#", "\ue000"), "")
    except RecipeError:
        return True
    return json.dumps(marked, default=str).replace("\\ue000", "#") != json.dumps(value, default=str)


def validate(values: dict, origins: dict[tuple, str]) -> tuple[Recipe | None, list[str]]:
    """Build the recipe section by section, so that a problem in one does not hide those of another."""
    problems = []

    def where(path: tuple) -> str:
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in origins or end == 0)
        return f"{origins.get(known, 'recipe')}: {'.'.join(map(str, path))}"

    sections = {}
    unknown = [name for name in values if name not in Recipe.model_fields]
    for name in unknown[:MAX_PROBLEMS]:
        problems.append(f"{where((name,))}: unknown key, got {shown(values[name])}{nearest(name, Recipe)}")
    for name, field in Recipe.model_fields.items():
        section = next(models_in(field.annotation))
        if values.get(name) is None and not field.is_required():
            sections[name] = field.get_default()
            continue
        try:
            sections[name] = section.model_validate(values.get(name, {}))
        except ValidationError as error:
            found = error.errors(include_url=False)
            problems += [f"{where((name, *e['loc']))}: {explain(e, section)}" for e in found[:MAX_PROBLEMS]]
            more = len(found) - MAX_PROBLEMS
            problems += [f"{where((name,))}: and {more} more problems"] if more > 0 else []
        else:
            problems += [f"{where((name, *path))}: {text}" for path, text in problems_below(sections[name])]
    if problems:
        return None, problems
    recipe = Recipe.model_construct(**sections)
    fill_in_training(recipe)
    problems = [f"{where(tuple(key.split('.')))}: {text}" for key, text in recipe.problems()]
    problems += [
        f"{where(path)}: ~ is not expanded here, got {value!r}; write the home folder out, such as $HOME/runs"
        for path, value in texts_below(values)
        if TILDE.match(value) and not {*path} & PROSE
    ]
    problems += [
        f"{where(path)}: a line break, tab or control character, got {shown(value)}; remove it"
        for path, value in texts_below(values)
        if CONTROL.search(value) and not {*path} & PROSE
    ]
    return recipe, problems


def texts_below(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Yield (key path, text) of every text in a recipe's values."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts_below(inner, (*path, key))


def problems_below(section: Section) -> Iterator[tuple[tuple, str]]:
    """Yield (key path, problem) of a section and of the sections in it."""
    for key, text in section.problems():
        yield tuple(int(part) if part.isdigit() else part for part in key.split(".")), text
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = {(name,): value} if isinstance(value, Section) else {}
        if isinstance(value, list):
            inner = {(name, index): item for index, item in enumerate(value) if isinstance(item, Section)}
        for path, item in inner.items():
            yield from (((*path, *rest), text) for rest, text in problems_below(item))


def explain(error: dict, section: type[Section]) -> str:
    """Return what is wrong with one value and what would be right."""
    *path, key = error["loc"] or ("",)
    for part in path:
        nested = section.model_fields.get(part) if isinstance(part, str) else None
        section = next((model for model in models_in(nested.annotation)), section) if nested else section
    if error["type"] == "extra_forbidden":
        return f"unknown key, got {shown(error['input'])}{nearest(str(key), section)}"
    if error["type"] == "missing":
        return f"missing; it says: {section.model_fields[key].description}"
    if error["type"] == "value_error":  # of a validator in recipe_config.py
        return f"{error['ctx']['error']}, got {shown(error['input'])}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {shown(error['input'])}"


def shown(value: Any) -> str:
    """Return a value of a recipe as one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def models_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the section classes inside an annotation such as `list[Source]` or `NearDuplicates | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def nearest(key: str, section: type[Section]) -> str:
    """Suggest the key that was probably meant, or list all keys."""
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys here are {', '.join(section.model_fields)}"


def describe_sections() -> str:
    """Return the sections of the recipe for --help, a line each."""
    sections = {name: next(models_in(field.annotation)) for name, field in Recipe.model_fields.items()}
    first_sentences = {name: " ".join(section.__doc__.split()).split(". ")[0] for name, section in sections.items()}
    return "\n".join(
        [
            "sections of the recipe, whose keys are set as --section.key=value:",
            *(f"  {name:<12}{sentence.rstrip('.')}" for name, sentence in first_sentences.items()),
            "--help training lists a section's keys, --help data.sources an inner section's, --help all every key",
        ]
    )


def describe_keys(topic: str) -> str:
    """Return keys with their default, meaning and unit, for --help.

    Args:
        topic: `all`, a section such as `data` or `data.sources`, or one key of a section.

    Raises: RecipeError: there is no such section or key.
    """

    def lines(section: type[Section], prefix: str, keys: Iterable[str]) -> Iterator[str]:
        for key in keys:
            field = section.model_fields[key]
            nested = next(models_in(field.annotation), None)
            name = prefix + key + list_mark(field)
            if field.description:
                default = "required" if field.is_required() else f"default {describe_default(field.get_default())}"
                more = f" Its keys: --help {prefix}{key}" if nested and topic != "all" else ""
                text = " ".join(field.description.split()) + more
                yield f"  --{name}  ({default})\n{textwrap.indent(textwrap.fill(text, 110), ' ' * 8)}"
            if nested and topic == "all":
                yield from lines(nested, f"{name}.", nested.model_fields)

    if topic == "all":
        return "\n".join(["every key of the recipe:", *lines(Recipe, "", Recipe.model_fields)])
    section, prefix = Recipe, ""
    names = topic.replace("[]", "").split(".")
    for depth, name in enumerate(names, start=1):
        if name not in section.model_fields:
            raise RecipeError(f"--help {topic}: no section or key {name!r}{nearest(name, section)}")
        field = section.model_fields[name]
        nested = next(models_in(field.annotation), None)
        if nested is None and depth < len(names):
            raise RecipeError(f"--help {topic}: {prefix}{name} is a key, not a section; --help {prefix}{name}")
        if nested is None:
            return "\n".join(lines(section, prefix, [name]))
        section, prefix = nested, f"{prefix}{name}{list_mark(field)}."
    summary = textwrap.fill(f"{topic}: {' '.join(section.__doc__.split())}", 118)
    return "\n".join([summary, *lines(section, prefix, section.model_fields)])


def list_mark(field: FieldInfo) -> str:
    """Return `[]` for a list of sections, such as data.sources, and nothing for any other key."""
    return "[]" if "list" in str(field.annotation) and next(models_in(field.annotation), None) else ""


def describe_default(default: Any) -> str:
    return json.dumps(default.model_dump() if isinstance(default, Section) else default)


class ShowHelp(argparse.Action):
    """Print the usage and the sections of the recipe, or the keys of the section that --help names."""

    def __call__(self, parser, namespace, topic, option_string=None):
        try:
            text = parser.format_help() if topic is None else f"{describe_keys(topic)}\n"
        except RecipeError as error:
            parser.exit(2, f"{error}\n")
        sys.stdout.write(text)
        parser.exit()


def parse_command_line(description: str, argv: list[str] | None = None, **flags: str) -> tuple[Recipe, Any]:
    """Read `--config FILE ...`, `--section.key=value`, `--overwrite`, `--dry_run`, `--help` and the extra flags.

    Args:
        description: the script's docstring, printed by --help.
        argv: arguments; None: those of the command line.
        **flags: further options that take a value, with their help.

    Returns: the recipe and the parsed options. If there are problems, the process lists them and exits with status 2.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=describe_sections(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", nargs="?", action=ShowHelp, metavar="SECTION", help="print this, or the keys of a section"
    )
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="YAML files, later ones win")
    parser.add_argument("--overwrite", action="store_true", help="rebuild output that is out of date")
    parser.add_argument("--dry_run", action="store_true", help="check and print what would be done, then stop")
    for flag, text in flags.items():
        parser.add_argument(f"--{flag}", help=text)
    # Taken out first: argparse reads an unknown option as a file name if its value has a space, as JSON does.
    given = sys.argv[1:] if argv is None else argv
    overrides = [argument for argument in given if OVERRIDE.match(argument)]
    options, rest = parser.parse_known_args([argument for argument in given if not OVERRIDE.match(argument)])
    options.overrides = overrides + rest
    try:
        return load_recipe(options.config, options.overrides), options
    except RecipeError as error:
        parser.exit(2, "".join(f"{problem}\n" for problem in error.problems))


def silence_transformers() -> None:
    """Turn off the bars and warnings of transformers, whose problems commands report themselves.

    The bars of downloads from the Hub stay.
    """
    from huggingface_hub.utils import enable_progress_bars  # only here: most commands do without these imports
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main function without telemetry; what a user can help ends it with a message, no traceback.

    Most errors are those of every process. The first of a machine prints it, and the launcher ends the others
    meanwhile; what another process alone has to say, it prints after ALONE_SECONDS.
    """
    os.environ |= NO_TELEMETRY
    if hub := sys.modules.get("huggingface_hub.constants"):  # which has read the environment
        hub.HF_HUB_DISABLE_TELEMETRY = True
    script = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write(f"{script}: stopped on SIGINT; the same command starts it again\n")
        raise SystemExit(EXIT_STOPPED) from None
    except Exception as error:
        reason = error if isinstance(error, RecipeError) else explain_limit(error, script)
        if reason is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(ALONE_SECONDS)
        raise SystemExit(f"{script}: {reason}") from error
