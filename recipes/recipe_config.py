# SPDX-License-Identifier: Apache-2.0
"""The recipe: every key of the YAML, its unit, its default, and strict loading.

In:   one or more YAML files (later ones win, mappings merge, lists are replaced) and `--section.key=value`.
Out:  a `Recipe`, or one `RecipeError` that lists every problem with its file, key path, value and remedy.

    python recipes/recipe_config.py > recipes/recipe.schema.json   # for editors that complete YAML keys
    python recipes/run_recipe.py --help                            # every key with its unit and default

A file may say which other file it is laid over: `base: base.yaml` at its top, relative to the file itself.
Any other path in a recipe is relative to the folder the command is started in.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, SequenceNode


OVERRIDE = re.compile(r"--\w+\.[\w.]+=")
MAX_YAML_BYTES = 1_000_000
MAX_YAML_ALIASES = 16  # each alias can double what a document expands to; recipes need none
MAX_YAML_DEPTH = 16


class RecipeError(ValueError):
    """What a user can mend, every problem at once, one a line: `file: key.path: what is wrong, got value; remedy`."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def whole_number(value: Any) -> Any:
    """Take `2e9`, a float to YAML, for the whole number it is; anything else goes on to strict validation."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(whole_number)]
Count = Annotated[Int, Field(ge=0)]
Positive = Annotated[Int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
# A name becomes a folder in the run folder, so it may not climb out of it or differ only by case.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


PersonalDataKind = Literal[
    "email", "ip", "iban", "card", "ssn", "tax", "account", "record", "docket", "birth", "phone"
]


class Section(BaseModel):
    """A mapping of the recipe: no unknown keys, no coercion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key path below this section, what is wrong) for values that are each legal but cannot go together."""
        yield from ()


class Run(Section):
    """Where the run lives."""

    output_dir: str
    """Folder for everything the run makes, for example runs/legal-quickstart."""
    seed: Count = 0
    """Seed of the initial weights and of the data order."""
    resume: str = "auto"
    """auto: go on from the newest valid checkpoint; never: refuse where there is one; or a checkpoint folder."""


class Source(Section):
    """One source of text: a Hub dataset, a file or folder, files inside a wheel or zip, or an fsspec URL."""

    name: Name
    """Folder name of the source in the run: lower-case letters, digits, - and _."""
    path: str
    """Hub dataset id (org/name); or file, folder, .whl, .zip; or fsspec URL (hf://, s3://, https://)."""
    data_files: str | list[str] | None = None
    """Glob or globs below path; for a wheel or zip, members of it. None: every file of a known type."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    revision: str | None = None
    """Commit of a Hub dataset, 40 hex digits. None: the head, whose commit documents/stats.json records."""
    max_bytes: Positive | None = None
    """Read no further than this many bytes of text (UTF-8)."""
    domain: Name | None = None
    """Label under which results are added up, such as legal or general. None: the source's own name."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training bytes, 0 to 1; the shares of all sources add up to 1."""
    license: str | None = None
    """Licence of the text, for the data and model cards."""
    url: str | None = None
    """Where a person reads about the source."""

    @property
    def label(self) -> str:
        return self.domain or self.name


class NearDuplicates(Section):
    """MinHash: documents that share a bucket of hashes of their word n-grams are near-duplicates; the first stays.

    With 14 buckets of 8 hashes, two documents of similarity 0.72 are found with probability 0.64, of 0.8 with 0.92.
    """

    n_grams: Positive = 5
    """Words in an n-gram."""
    num_buckets: Positive = 14
    """Buckets; more find more."""
    hashes_per_bucket: Positive = 8
    """Hashes that must all agree in a bucket; more find fewer."""


class Decontamination(Section):
    """Documents that hold items of the benchmarks that are scored later are dropped; recipes/benchmark_overlap.py."""

    benchmarks: str
    """Folder of <task>.jsonl, as eval/run_eval.py --export_requests writes it."""
    ngram_words: Annotated[Int, Field(ge=8)] = 13
    """Words that must follow each other in a document as they do in an item to count as shared."""
    min_overlap_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A document is dropped when it shares this much of an item's words; smaller overlaps are only recorded. At 0.5 a
    common phrase in a short item can drop many documents, and decontamination.json shows it; 0.8 drops near-copies."""


class PersonalData(Section):
    """Personal data that has a form: what is done with it, before anything else sees the text. Names are left."""

    profile: Literal["finance", "general", "legal", "medical"]
    """Kinds replaced by placeholders. general: email, ip, iban, card, ssn, phone; finance and legal: also tax,
    account, birth; medical: also account, record, birth."""
    actions: dict[PersonalDataKind, Literal["replace", "drop", "leave"]] = {}
    """Kind -> replace, drop (the document) or leave (only count), over the profile's; may add kinds, such as
    docket."""


class Splits(Section):
    """Held-out text, taken by content hash before anything is trained."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Share of each source's bytes scored during training."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Share of each source's bytes kept for the final evaluation."""
    max_bytes: Positive = 20_000_000
    """No split holds out more than this of a source, whatever its fraction (bytes)."""


class Data(Section):
    """Sources, cleaning, splits and the mixture."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The sources, each {name, path, data_files | revision, share}."""
    extract_text: str | None = None
    """Python file with extract_text(example, source). None: data.py beside the last YAML file that has one."""
    min_document_bytes: Count = 200
    """Shorter documents are dropped (bytes)."""
    personal_data: PersonalData | None = None
    """Personal data to replace, count or drop documents for. None: not looked for."""
    near_duplicates: NearDuplicates | None = NearDuplicates()
    """MinHash settings; null keeps near-duplicates."""
    decontamination: Decontamination | None = None
    """Benchmarks to keep out of the text; null checks nothing."""
    family_containment: Fraction | None = None
    """Documents that share this fraction of their 13-word sequences go to one split together. None: each by itself.
    Held in memory, about 8 bytes a word: for corpora of up to some GB."""
    splits: Splits = Splits()
    """Held-out shares."""
    workers: Positive | None = None
    """Processes for preparing and tokenizing; the result does not depend on it. None: one a core."""
    max_repetitions: PositiveFloat = 4.0
    """A run that would show a source more often than this is refused before it starts."""
    fit_to_corpus: bool = False
    """Shrink vocabulary, batch and length of training to what a small corpus can carry, with a note, not an error."""

    def problems(self):
        names = [source.name for source in self.sources]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"sources.{index}.name", f"{name!r} is used twice; give each source its own name"
        total = sum(source.share for source in self.sources)
        if abs(total - 1) > 1e-6:
            yield "sources", f"the shares add up to {total:g}; they must add up to 1"
        if self.splits.validation_fraction + self.splits.test_fraction > 0.5:
            yield "splits", "validation_fraction and test_fraction hold out more than half of the text"


class Tokenizer(Section):
    """The domain tokenizer: byte-level BPE, digits split singly, one special token."""

    vocab_size: Annotated[Int, Field(ge=257)] = 32_768
    """Entries, the 256 bytes and <|endoftext|> among them; a multiple of 128 is fastest on GPUs."""
    min_frequency: Positive = 2
    """Occurrences a pair needs to become an entry."""
    max_train_bytes: Positive = 1_000_000_000
    """Training sample, drawn by the sources' shares (bytes); about 20 bytes of memory each."""
    terms: list[str] = []
    """Words whose cut is shown in the report, such as mens rea."""


class Model(Section):
    """LlamaConfig's fields. vocab_size is the tokenizer's, max_position_embeddings is training.sequence_length."""

    hidden_size: Positive
    """Width."""
    intermediate_size: Positive
    """Width of the feed-forward layer, about 8/3 of hidden_size."""
    num_hidden_layers: Positive
    """Depth."""
    num_attention_heads: Positive
    """Query heads."""
    num_key_value_heads: Positive | None = None
    """Key and value heads; fewer than the query heads is grouped-query attention. None: as many."""
    head_dim: Positive | None = None
    """Width of a head. None: hidden_size / num_attention_heads."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position frequencies."""
    rms_norm_eps: PositiveFloat = 1e-5
    """Added to the variance in RMSNorm."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights; residual outputs get it divided by sqrt(2 num_hidden_layers)."""
    tie_word_embeddings: bool = False
    """Use one matrix for the input embedding and the output projection."""

    def problems(self):
        heads, key_value_heads = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            yield "hidden_size", f"{self.hidden_size} is not divisible by num_attention_heads={heads}; set head_dim"
        elif (self.head_dim or self.hidden_size // heads) % 2:
            width = self.head_dim or self.hidden_size // heads
            yield "head_dim", f"a head of width {width} cannot be rotated in pairs; make it even"
        if heads % key_value_heads:
            yield "num_key_value_heads", f"{key_value_heads} does not divide num_attention_heads={heads}"


class Training(Section):
    """The optimizer, the schedule, the horizon. Processes, precision and sharding are in accelerate_configs/."""

    max_tokens: Positive
    """Length of training (tokens, all sources together)."""
    tokens_per_step: Positive
    """Tokens in one optimizer step over all processes; gradient accumulation is derived from it."""
    sequence_length: Annotated[Int, Field(ge=2)]
    """Tokens in one training sequence."""
    per_device_train_batch_size: Positive = 8
    """Sequences in one forward pass on one device."""
    max_seconds: PositiveFloat | None = None
    """Train for about this long: max_tokens is cut to it once, from the speed of the first steps (seconds)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon: torch.optim.Muon for the matrices of the layers and AdamW for the rest."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    min_learning_rate_fraction: Fraction = 0.0
    """Learning rate at the last step as a fraction of the peak."""
    lr_scheduler_type: Literal["warmup_stable_decay", "cosine"] = "warmup_stable_decay"
    """Shape after the warm-up."""
    warmup_steps: Count | None = None
    """Steps over which the learning rate rises. None: a twentieth of all steps, at most 500."""
    decay_fraction: Fraction = 0.2
    """Last fraction of the steps over which warmup_stable_decay falls."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of matrices and embeddings; norm gains never decay."""
    adam_beta1: Fraction = 0.9
    """AdamW's first decay rate."""
    adam_beta2: Fraction = 0.95
    """AdamW's second decay rate."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients longer than this are scaled down to it."""
    torch_compile: bool = True
    """Compile the forward and backward pass; without a C++ compiler it is left off with a note."""
    logging_steps: Positive = 10
    """A line in metrics.jsonl every so many steps."""
    eval_steps: Positive = 500
    """Validation bits per byte every so many steps, and at the end."""
    max_eval_bytes: Positive = 1_000_000
    """Validation text scored each time, per source (bytes)."""
    save_steps: Positive = 500
    """A checkpoint every so many steps, and at the end."""
    save_total_limit: Positive = 2
    """Checkpoints kept; at least 2, since the newest may turn out to be damaged."""

    @property
    def max_steps(self) -> int:
        return self.max_tokens // self.tokens_per_step

    def problems(self):
        micro_tokens = self.per_device_train_batch_size * self.sequence_length
        if self.tokens_per_step % micro_tokens:
            below, above = (k * micro_tokens for k in divmod_neighbours(self.tokens_per_step, micro_tokens))
            yield (
                "tokens_per_step",
                f"{self.tokens_per_step} is not divisible by per_device_train_batch_size * sequence_length = "
                f"{self.per_device_train_batch_size} * {self.sequence_length} = {micro_tokens}; nearest: "
                + (f"{below} or {above}" if below else f"{above}"),
            )
        if self.max_tokens < self.sequence_length:
            yield (
                "max_tokens",
                f"{self.max_tokens} is less than one sequence of sequence_length={self.sequence_length}",
            )
        if self.save_total_limit < 2:
            yield "save_total_limit", "1 leaves nothing to go back to when the newest checkpoint is damaged; use 2"


class Evaluation(Section):
    """What eval/run_eval.py scores at the end."""

    tasks: list[Name] = []
    """Tasks below eval/tasks/ (lm-eval YAML)."""
    prompts: list[str] = []
    """Beginnings that the trained model continues in the report and the card."""
    max_bytes_per_source: Positive = 2_000_000
    """Held-out text scored per source (bytes)."""
    batch_size: Positive = 8
    """Sequences in one forward pass."""
    xz: bool = False
    """Compress the held-out text with xz -9e as a yardstick; for corpora of up to about 50 MB."""


class Hub(Section):
    """Publishing. Nothing is uploaded unless repo_id is set."""

    repo_id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Model repository (user-or-org/name). None: only the release folder is made."""
    private: bool = True
    """Create the repository private."""
    license: str = "other"
    """Licence of the model, as the Hub spells it, such as apache-2.0."""
    language: list[str] = ["en"]
    """Languages of the text (ISO 639-1)."""


class Recipe(Section):
    """A whole experiment. The machine it runs on is described in accelerate_configs/, not here."""

    run: Run
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    model: Model
    training: Training
    evaluation: Evaluation = Evaluation()
    hub: Hub = Hub()

    def problems(self):
        training = self.training
        if self.data.fit_to_corpus:
            return  # then training is fitted, not refused
        if training.max_tokens < training.tokens_per_step:
            text = f"{training.max_tokens} is less than one step of tokens_per_step={training.tokens_per_step}"
            yield "training.max_tokens", text
        elif (training.warmup_steps or 0) >= training.max_steps:
            steps = f"max_tokens / tokens_per_step = {training.max_steps} steps"
            yield "training.warmup_steps", f"{training.warmup_steps} is not less than {steps}"

    def dump_yaml(self) -> str:
        """Return the resolved recipe, every key with its value, as YAML that loads to an equal recipe."""
        from io import StringIO

        stream = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False
        yaml.dump(self.model_dump(), stream)
        return stream.getvalue()


def divmod_neighbours(value: int, unit: int) -> tuple[int, int]:
    """Return how many whole units lie at most at and just above value."""
    return value // unit, value // unit + 1


def read_yaml(text: str, name: str) -> tuple[Any, dict[tuple, str]]:
    """Parse one YAML text strictly.

    Returns: the plain value, and where each key path in it was written (`name:line`).
    Raises: RecipeError: not YAML 1.2, a duplicate key, a tag, too many aliases, too large or too deep.
    """
    if len(text.encode()) > MAX_YAML_BYTES:
        raise RecipeError(f"{name}: larger than {MAX_YAML_BYTES} bytes; a recipe is a few hundred lines")
    yaml = YAML(typ="safe", pure=True)
    try:
        if sum(isinstance(event, AliasEvent) for event in yaml.parse(text)) > MAX_YAML_ALIASES:
            raise RecipeError(f"{name}: more than {MAX_YAML_ALIASES} aliases; write the values out")
        root = YAML(typ="safe", pure=True).compose(text)
        origins: dict[tuple, str] = {}

        def note(node, path: tuple):
            if len(path) > MAX_YAML_DEPTH:
                raise RecipeError(f"{name}: nested deeper than {MAX_YAML_DEPTH} levels")
            origins[path] = f"{name}:{node.start_mark.line + 1}"
            if isinstance(node, MappingNode):
                for key, value in node.value:
                    note(value, (*path, key.value))
                    origins[*path, key.value] = f"{name}:{key.start_mark.line + 1}"
            elif isinstance(node, SequenceNode):
                for index, value in enumerate(node.value):
                    note(value, (*path, index))

        if root is not None:
            note(root, ())
        return yaml.load(text), origins
    except YAMLError as error:
        what = str(getattr(error, "problem", None) or error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(f"{name}{f':{mark.line + 1}' if mark else ''}: {what}") from error


def read_files(paths: list[Path], seen: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict, dict]]:
    """Yield (path, values, origins) of each file, the file it is laid over first."""
    for path in paths:
        if path.resolve() in seen:
            raise RecipeError(f"{path}: base: leads back to the file itself")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise RecipeError(f"{path}: cannot be read: {reason}") from error
        values, origins = read_yaml(text, str(path))
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
        base = values.pop("base", None)
        if base is not None:
            if not isinstance(base, str):
                raise RecipeError(f"{path}: base: expected the name of a YAML file, got {base!r}")
            yield from read_files([path.parent / base], (*seen, path.resolve()))
        yield path, values, origins


def merge(below: dict, above: dict) -> dict:
    """Lay one mapping over another: mappings merge, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_recipe(config: list[Path | str], overrides: list[str] = ()) -> Recipe:
    """Load YAML files and `--section.key=value` overrides into a recipe.

    Raises: RecipeError: with every problem found, before anything is done.
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
        value, _ = read_yaml(text, f"--{key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merge(values, value)
        origins[tuple(key.split("."))] = f"--{key}"
    recipe, invalid = validate(values, origins)
    problems += invalid
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


def validate(values: dict, origins: dict[tuple, str]) -> tuple[Recipe | None, list[str]]:
    """Build the recipe, section by section so that a problem in one does not hide those of another."""
    problems = []

    def where(path: tuple) -> str:
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in origins or end == 0)
        return f"{origins.get(known, 'recipe')}: {'.'.join(map(str, path))}"

    sections = {}
    for name in values:
        if name not in Recipe.model_fields:
            problems.append(f"{where((name,))}: unknown key, got {shown(values[name])}{nearest(name, Recipe)}")
    for name, field in Recipe.model_fields.items():
        if name not in values and not field.is_required():
            sections[name] = field.get_default()
            continue
        try:
            sections[name] = field.annotation.model_validate(values.get(name, {}))
        except ValidationError as error:
            problems += [f"{where((name, *e['loc']))}: {explain(e, field.annotation)}" for e in error.errors()]
        else:
            problems += [f"{where((name, *key.split('.')))}: {text}" for key, text in sections[name].problems()]
    if problems:
        return None, problems
    recipe = Recipe.model_construct(**sections)
    return recipe, [f"{where(tuple(key.split('.')))}: {text}" for key, text in recipe.problems()]


def explain(error: dict, section: type[Section]) -> str:
    """Say what is wrong with one value and what would be right, in the words of a recipe."""
    *path, key = error["loc"] or ("",)
    for part in path:
        nested = section.model_fields.get(part) if isinstance(part, str) else None
        section = next((model for model in models_in(nested.annotation)), section) if nested else section
    if error["type"] == "extra_forbidden":
        return f"unknown key, got {shown(error['input'])}{nearest(str(key), section)}"
    if error["type"] == "missing":
        return f"missing; it says: {section.model_fields[key].description}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {shown(error['input'])}"


def shown(value: Any) -> str:
    """Show a value of a recipe on one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def models_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the section classes inside an annotation such as `list[Source]` or `NearDuplicates | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def nearest(key: str, section: type[Section]) -> str:
    """Name the key that was probably meant, or all there are."""
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys here are {', '.join(section.model_fields)}"


def describe_keys() -> str:
    """List every key with its default and its description, for --help."""

    def lines(section: type[Section], prefix: str) -> Iterator[str]:
        for key, field in section.model_fields.items():
            nested = next(models_in(field.annotation), None)
            many = "[]" if nested and "list" in str(field.annotation) else ""
            if field.description:
                default = "required" if field.is_required() else f"default {describe_default(field.get_default())}"
                yield f"  --{prefix}{key}{many}  ({default})\n        {' '.join(field.description.split())}"
            if nested:
                yield from lines(nested, f"{prefix}{key}{many}.")

    return "keys of the recipe, each an override --section.key=value:\n" + "\n".join(lines(Recipe, ""))


def describe_default(default: Any) -> str:
    return json.dumps(default.model_dump() if isinstance(default, Section) else default)


def parse_command_line(description: str, argv: list[str] | None = None, **flags: str) -> tuple[Recipe, Any]:
    """Read `--config FILE ...`, `--section.key=value`, `--overwrite`, `--dry_run` and the given extra flags.

    Args:
        description: the script's docstring, shown by --help.
        argv: arguments; None takes the command line's.
        **flags: further options that take a value, with their help.

    Returns: the recipe and the parsed options. The process exits with status 2 and the list of problems if any.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=describe_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="YAML files, later ones win")
    parser.add_argument("--overwrite", action="store_true", help="make the output anew where it is out of date")
    parser.add_argument("--dry_run", action="store_true", help="check and show what would be done, then stop")
    for flag, text in flags.items():
        parser.add_argument(f"--{flag}", help=text)
    # Taken out first: argparse takes an unknown option with a space in its value, as JSON has, for a file name.
    given = sys.argv[1:] if argv is None else argv
    overrides = [argument for argument in given if OVERRIDE.match(argument)]
    options, rest = parser.parse_known_args([argument for argument in given if not OVERRIDE.match(argument)])
    options.overrides = overrides + rest
    try:
        return load_recipe(options.config, options.overrides), options
    except RecipeError as error:
        parser.exit(2, "".join(f"{problem}\n" for problem in error.problems))


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main function; what the user can mend ends it with the message, not with a traceback."""
    try:
        main()
    except RecipeError as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from error


def main() -> None:
    schema = Recipe.model_json_schema()
    schema["properties"]["base"] = {"type": "string", "description": "YAML file that this one is laid over."}
    # An overlay states only what differs, so an editor must not ask for the rest.
    schema.pop("required")
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    print(json.dumps(schema, indent=2))


if __name__ == "__main__":
    main()
