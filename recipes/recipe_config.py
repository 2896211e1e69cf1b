# SPDX-License-Identifier: Apache-2.0
"""The recipe: every key of the YAML, its unit and its default. recipe_loading.py reads files into it.

    python recipes/recipe_config.py > recipes/recipe.schema.json   # for editors that complete YAML keys
    python recipes/run_recipe.py --help training                   # the keys of a section with unit and default

A file may name the file that it overrides: `base: base.yaml` at its top, relative to the file itself. Any other path
in a recipe is relative to the folder the command is started in.
"""

import json
import re
from collections.abc import Iterator
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator
from ruamel.yaml import YAML

from amounts import read_bytes, read_hours, read_money, whole_number


class RecipeError(ValueError):
    """Something a user can fix: all problems at once, one a line: `file: key.path: what is wrong, got value;
    remedy`."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def names_folder(place: str) -> bool:
    """Return whether a model or tokenizer is a local one, there or not; else it is one of the Hub.

    It is if it or its first part is in the current folder, or if it lacks the form of a Hub id, which is `owner/name`
    or, of some old models, `gpt2`.
    """
    first, *rest = Path(place).parts or (".",)
    lacks_form = len(rest) > 1 or place.startswith((".", "~")) or place.endswith("/")
    return lacks_form or Path(first).is_dir() or Path(place).exists()


def refuse_missing_folder(key: str, place: str) -> None:
    """Refuse a model's or tokenizer's folder that does not exist, so that the Hub is not asked for it by its name.

    Raises: RecipeError: it is a folder, and not there.
    """
    if names_folder(place) and not Path(place).exists():
        raise RecipeError(
            f"{key}={place!r}: no such folder in {Path.cwd()}, and the Hub was not asked; name a folder, or a Hub id "
            "(owner/name) where there is no folder of the owner's name"
        )


Int = Annotated[int, BeforeValidator(whole_number)]
Count = Annotated[Int, Field(ge=0)]
Positive = Annotated[Int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
AMOUNT_SCHEMA = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})
Bytes = Annotated[int, BeforeValidator(read_bytes), Field(ge=0), AMOUNT_SCHEMA]
Hours = Annotated[float, BeforeValidator(read_hours), Field(gt=0), AMOUNT_SCHEMA]
Money = Annotated[float, BeforeValidator(read_money), Field(gt=0), AMOUNT_SCHEMA]
# A name becomes a folder in the run folder, so it may not climb out of it or differ only by case.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
RepoId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


PersonalDataKind = Literal[
    *("email", "ip", "iban", "card", "ssn", "tax", "account", "record", "docket", "birth", "phone", "national_id"),
    *("passport", "licence", "vehicle", "device", "date", "age", "url"),
]


DeviceName = Literal[
    "a100-40gb",
    "a100-80gb",
    "h100-sxm",
    "h100-pcie",
    "h100-nvl",
    "h200-sxm",
    "b200-sxm",
    "l40s",
    "rtx-4090",
    "mi300x",
    "cpu",
]


class Section(BaseModel):
    """A mapping of the recipe: no unknown keys, no coercion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key path below this section, what is wrong) for values that are valid alone but not together."""
        yield from ()


class Run(Section):
    """The run folder, the seed, resuming."""

    output_dir: str
    """Folder for everything the run makes, for example runs/legal-quickstart. In a YAML file, {folder} stands for the
    name of the folder that the file is in, so that the copy of a recipe has runs of its own."""
    seed: Count = 0
    """Seed of the initial weights and of the data order."""
    resume: str = "auto"
    """auto: resume from the newest valid checkpoint; never: refuse if there is one; or a checkpoint folder."""
    timeout_seconds: PositiveFloat = 600.0
    """Training ends when the others have waited this long for one process (seconds)."""


class Source(Section):
    """One source of text: a Hub dataset, a file or folder, files inside a wheel, zip or tar, or an fsspec URL."""

    name: Name
    """Folder name of the source in the run: lower-case letters, digits, - and _."""
    path: str
    """File, folder, .whl, .zip or .tar; or fsspec URL (hf://, s3://, https://); or, with revision or config, Hub
    dataset id (org/name)."""
    data_files: str | list[str] | None = None
    """Glob or globs below path; for a wheel, zip or tar, members of it. None: every file of a known type."""
    ignore: list[str] = []
    """Endings that are not read, as the table of files shows them, such as .pdf or (no ending). A run that would leave
    out more bytes than it reads is refused unless they are named here."""
    text_field: str | None = None
    """Field of a row with its text, such as body or body.content: a text, a list of paragraphs or a conversation.
    None: extract_text takes it, by default from text. Tables (.csv, .tsv) are read with this or text_template only."""
    text_template: str | None = None
    """Text of a row, with fields in braces, such as '{title}\\n\\n{body}', instead of text_field."""
    document_separator: str | None = None
    """What divides a file or field that holds many documents: a text such as <|endoftext|>, or a regular expression
    between slashes such as /^-{3,}$/ for lines of dashes. None: each is one document."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    revision: str | None = None
    """Commit of a Hub dataset, 40 hex digits; or a branch such as main, whose commit documents/stats.json records.
    None: with config, main; without it, path is not asked of the Hub."""
    max_bytes: Positive | None = None
    """Read about this many bytes of text (UTF-8), a sample: parts of the files, chosen by a hash of their names."""
    max_training_bytes: Positive | None = None
    """Train on at most this many bytes, in documents chosen by a hash of their content. Held-out text stays the same,
    so models trained on less and on more text are scored on the same one."""
    domain: Name | None = None
    """Label that results are summed under, such as legal or general. None: the source's own name."""
    share: Fraction | None = None
    """Fraction of the training bytes, 0 to 1. None: such sources split the remaining share in proportion to their
    bytes, subject to data.min_shares and max_repetitions. 0: only in data.phases."""
    max_repetitions: PositiveFloat | None = None
    """A run that would repeat the source more often is refused before it starts. None: data.max_repetitions."""
    date_field: str = "date"
    """Field of an example with the day, month or year of the text, as 2023-05-31, 2023-05 or 2023."""
    license: str | None = None
    """Licence of the text, for the data and model cards."""
    url: str | None = None
    """Web page about the source."""

    @property
    def label(self) -> str:
        return self.domain or self.name

    def problems(self):
        for index, ending in enumerate(self.ignore):
            if ending != "(no ending)" and (not ending.startswith(".") or ending != ending.lower()):
                yield f"ignore.{index}", f"not an ending in small letters such as .pdf, or (no ending), got {ending!r}"
        if self.text_field is not None and self.text_template is not None:
            yield "text_template", "cannot be set together with text_field"
        if self.text_template is not None and not re.search(r"\{[^{}]+\}", self.text_template):
            yield "text_template", f"names no field in braces such as {{body}}, got {self.text_template!r}"
        if (separator := self.document_separator) is not None:
            try:
                is_expression = len(separator) > 2 and separator[0] == separator[-1] == "/"
                if not separator or (is_expression and re.compile(separator[1:-1]).fullmatch("")):
                    yield "document_separator", f"matches nothing at all, so it would be everywhere, got {separator!r}"
            except re.error as error:
                yield "document_separator", f"not a regular expression: {error}, got {separator!r}"


class NearDuplicates(Section):
    """MinHash: documents that share a bucket of hashes of their word n-grams are near-duplicates. Each cluster keeps
    one document: from the source named first in the recipe, the longest one.

    With 14 buckets of 8 hashes, two documents of similarity 0.72 are found with probability 0.65, of 0.8 with 0.92.
    """

    n_grams: Positive = 5
    """Words in an n-gram."""
    num_buckets: Positive = 14
    """Buckets; more buckets find more pairs."""
    hashes_per_bucket: Positive = 8
    """Hashes that must all agree in a bucket; more hashes find fewer pairs."""
    against: list[str] = []
    """documents/ folders of earlier runs: documents near to one of theirs are dropped."""


class Decontamination(Section):
    """Drop documents that hold items of the benchmarks scored later; corpus/benchmark_overlap.py."""

    benchmarks: str | None = None
    """Folder of <task>.jsonl written by eval/run_eval.py --export_requests. None: benchmarks/ of the run, which
    is written for evaluation.tasks."""
    ngram_words: Annotated[Int, Field(ge=8)] = 13
    """Consecutive words that a document and an item must have in common to count as shared."""
    min_overlap_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A document is dropped when it shares this fraction of an item's words, or of its question's; smaller overlaps
    are recorded. At 0.5 a common phrase in a short item can drop many documents (see decontamination.json); 0.8 drops
    near-copies."""


class Languages(Section):
    """Languages to keep, detected by py3langid, whose model comes with its package; corpus/language.py."""

    keep: Annotated[list[str], Field(min_length=1)]
    """ISO 639-1 codes, such as en."""
    min_probability: Fraction = 0.5
    """Least probability that a document is in one of these languages."""


class Quality(Section):
    """Rules of Gopher, C4 and FineWeb that drop documents of low quality; corpus/text_quality.py."""

    profile: Literal["web", "professional"] = "professional"
    """web: the published thresholds, made for web pages; professional: settings under which statutes, contracts,
    filings and clinical notes pass."""
    overrides: dict[str, float | bool] = {}
    """Rule -> threshold that replaces the profile's; corpus/text_quality.py lists the rules."""


class QualityModel(Section):
    """Drop the training documents of a source that read least like the team's own good documents, by a linear model
    that learns from both; corpus/quality_model.py. Held-out text stays the same."""

    good: Annotated[list[Name], Field(min_length=1)]
    """Sources of good documents."""
    bad: Name | Annotated[list[Name], Field(min_length=1)]
    """Source or sources to filter, such as web."""
    keep_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of each such source's training bytes to keep, the best documents first."""


class RepeatedPassages(Section):
    """Remove passages that very many documents share, such as headers, footers and licence notices;
    corpus/repeated_passages.py."""

    min_documents: Annotated[Int, Field(ge=2)]
    """Documents that must share a passage."""
    min_words: Positive = 8
    """Shorter passages are kept."""
    sources: list[Name] | None = None
    """Sources to look in. None: all."""


class PersonalData(Section):
    """Personal data in recognisable forms: replaced, counted or dropped before any other step. Names are left."""

    profile: Literal["finance", "general", "legal", "medical"]
    """Kinds replaced by placeholders. general: email, ip, iban, card, ssn, phone, national_id, passport, url (with an
    identifier in it); legal: also tax, account, birth; finance: also licence; medical: general and account, record,
    birth, licence (to drive, to practise), vehicle, device, date (of admission, discharge, death, ...), age (over
    89)."""
    actions: dict[PersonalDataKind, Literal["replace", "drop", "leave"]] = {}
    """Kind -> replace, drop (the document) or leave (only count), instead of the profile's; may add kinds, such as
    docket."""


class Splits(Section):
    """Held-out text, chosen by content hash before anything is trained."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Fraction of each source's bytes scored during training."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Fraction of each source's bytes kept for the final evaluation."""
    max_bytes: Positive = 20_000_000
    """Most that a split holds out of a source (bytes)."""
    future_from: str | None = None
    """Documents of this day and later form the split `future`, which is never trained on and shows how the model does
    on later text. As '2024-01-01', in quotes. Documents without a date are not in it; dates in a form that
    Source.date_field does not accept are quarantined."""

    def problems(self):
        if self.validation_fraction + self.test_fraction > 0.5:
            yield "validation_fraction", "with test_fraction it holds out more than half of the text"
        if self.future_from is not None:
            try:
                date.fromisoformat(self.future_from)
            except ValueError:
                yield "future_from", f"not a day, got {self.future_from!r}; write it as '2024-01-01', in quotes"


class RopeParameters(Section):
    """LlamaConfig's rope_parameters: how rotary positions are scaled for longer sequences."""

    rope_type: Literal["default", "linear", "yarn", "llama3"] = "default"
    """default: only a larger rope_theta; the others also rescale by factor."""
    rope_theta: PositiveFloat
    """Base of the rotary position frequencies, in place of model.rope_theta."""
    factor: Annotated[float, Field(ge=1)] | None = None
    """New sequence length over original_max_position_embeddings; for all types but default."""
    original_max_position_embeddings: Positive | None = None
    """Sequence length that factor starts from (tokens); for yarn and llama3."""
    low_freq_factor: PositiveFloat | None = None
    """llama3: waves longer than the original length divided by this are stretched in full."""
    high_freq_factor: PositiveFloat | None = None
    """llama3: waves shorter than the original length divided by this stay as they are."""

    def problems(self):
        needed = {
            "default": set(),
            "linear": {"factor"},
            "yarn": {"factor", "original_max_position_embeddings"},
            "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
        }[self.rope_type]
        given = self.model_dump(exclude={"rope_type", "rope_theta"}, exclude_none=True).keys()
        for name in sorted(needed - given):
            yield name, f"missing; rope_type={self.rope_type} needs it"
        for name in sorted(given - needed):
            yield name, f"is not read with rope_type={self.rope_type}; leave it out"


class Phase(Section):
    """A later part of training with its own shares, such as the best text while the learning rate decays."""

    start_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Start of the phase, as a fraction of all steps; it lasts until the next one starts."""
    shares: dict[Name, Fraction]
    """Source -> fraction of the bytes; sources not named have none."""
    sequence_length: Positive | None = None
    """Tokens in one training sequence from here on, a multiple of training.sequence_length. Tokens in a forward pass
    and in a step do not change. None: that of the phase before."""
    rope_parameters: RopeParameters | None = None
    """Rotary positions from here on, for a longer sequence_length. None: those of the phase before."""


class Skip(Section):
    """Text that is not trained on; every other step keeps its data. May change between a checkpoint and the resume
    from it."""

    steps: list[Annotated[list[Positive], Field(min_length=2, max_length=2)]] = []
    """Ranges [first, last] of optimizer steps."""
    documents: list[str] = []
    """Ids of documents, as document_ledger.py prints them, skipped wherever they occur."""

    def problems(self):
        for index, (first, last) in enumerate(self.steps):
            if last < first:
                yield f"steps.{index}", f"[{first}, {last}] ends before it starts"


class Slurm(Section):
    """How tasks are submitted with data.executor: slurm."""

    partition: str
    """Partition to submit to."""
    time: str = "12:00:00"
    """Longest time of one task (hh:mm:ss)."""
    mem_per_cpu_gib: Positive = 4
    """Memory of one task (GiB)."""
    options: dict[str, str] = {}
    """Further sbatch options, such as account: my-project."""


class Canaries(Section):
    """Made-up records planted in training documents, for audit_leaks.py to ask the model for. They are nobody's."""

    repetitions: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 16, 64]
    """How often a record stands in the training text; each number is a level."""
    per_level: Annotated[Int, Field(ge=5)] = 20
    """Records of each level, and as many that are planted nowhere."""


class Data(Section):
    """Sources, cleaning, splits and the mixture."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The sources, each {name, path, data_files | revision, share}."""
    min_shares: dict[Name, Fraction] = {}
    """Domain (or name of a source) -> least fraction of the training bytes, such as legal: 0.51."""
    phases: list[Phase] = []
    """Later parts of training with their own shares, in order."""
    skip: Skip = Skip()
    """Steps and documents that are not trained on."""
    extract_text: str | None = None
    """Python file with extract_text(example, source). None: data.py beside the last YAML file that has one."""
    min_document_bytes: Count = 200
    """Shorter documents are dropped (bytes)."""
    normalise_text: bool = True
    """Unicode NFC, plain line ends and spaces, no control or invisible characters; corpus/text_normalisation.py."""
    languages: Languages | None = None
    """Languages to keep. None: all."""
    quality: Quality | None = None
    """Rules that drop documents of low quality. None: nothing is dropped."""
    repeated_passages: RepeatedPassages | None = None
    """Passages to remove from the documents that share them. None: none."""
    quality_model: QualityModel | None = None
    """Good documents by which other sources are filtered. None: nothing is dropped."""
    personal_data: PersonalData | None = None
    """Personal data to replace, count or drop documents for. None: not looked for."""
    near_duplicates: NearDuplicates | None = NearDuplicates()
    """MinHash settings; null keeps near-duplicates."""
    decontamination: Decontamination | None = None
    """Benchmarks to keep out of the text; null checks nothing."""
    canaries: Canaries | None = None
    """Records to plant in the training documents of sources whose domain is not general. None: none."""
    family_containment: Fraction | None = None
    """Documents that share this fraction of their 13-word sequences go to the same split, but for the split future,
    which is by date alone: stats.json counts families_in_train_and_future. None: each by itself. Takes about 8 bytes
    of memory a word: for corpora of up to some GB."""
    splits: Splits = Splits()
    """Held-out text."""
    dropped_samples_bytes: Bytes = 10_000_000
    """Samples of the documents that each step drops, and of some as they were before cleaning, to look at with
    show_documents.py (bytes in all). They stay in the run folder and are not published. 0: none."""
    workers: Positive | None = None
    """Processes that prepare and tokenize; the result does not depend on it. None: one a core, or as many as a cluster
    gives."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where the tasks of prepare and tokenize run; the result does not depend on it. slurm: job arrays on a cluster
    with a shared file system; ray: the cluster that RAY_ADDRESS names."""
    slurm: Slurm | None = None
    """For executor: slurm."""
    max_repetitions: PositiveFloat = 4.0
    """A run that would repeat a source more often is refused before it starts."""
    repack: bool = False
    """Each epoch divides the text of a shard into sequences at other places, so that a document that is read again is
    cut anew; its neighbours stay. An epoch leaves out less than two sequences at the ends of a shard, others each
    time."""
    fit_to_corpus: bool = False
    """Reduce vocabulary size, batch and length of training to fit a small corpus, with a note instead of an error."""

    def longest_sequence(self, sequence_length: int) -> int:
        """Return the tokens of the longest sequence over all phases, where training begins with `sequence_length`."""
        return max([sequence_length, *(phase.sequence_length or 0 for phase in self.phases)])

    def problems(self):
        names = [source.name for source in self.sources]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield f"sources.{index}.name", f"{name!r} is used twice; give each source its own name"
        given = [source.share for source in self.sources if source.share is not None]
        if len(given) == len(names) and abs(sum(given) - 1) > 1e-6:
            yield "sources", f"the shares add up to {sum(given):g}; they must add up to 1"
        elif len(given) < len(names) and sum(given) > 1 - 1e-6:
            yield "sources", f"the shares add up to {sum(given):g} and leave nothing for the sources without one"
        labels = {source.label for source in self.sources} | set(names)
        for label in self.min_shares.keys() - labels:
            yield f"min_shares.{label}", f"no source or domain of this name; there are {', '.join(sorted(labels))}"
        starts = [phase.start_fraction for phase in self.phases]
        if starts != sorted(set(starts)):
            yield "phases", f"start_fraction must increase from phase to phase, got {starts}"
        for index, phase in enumerate(self.phases):
            for name in phase.shares.keys() - set(names):
                yield f"phases.{index}.shares.{name}", f"no source of this name; there are {', '.join(names)}"
            if abs(sum(phase.shares.values()) - 1) > 1e-6:
                total = sum(phase.shares.values())
                yield f"phases.{index}.shares", f"the shares add up to {total:g}; they must add up to 1"
        for index, name in enumerate((self.repeated_passages and self.repeated_passages.sources) or []):
            if name not in names:
                yield f"repeated_passages.sources.{index}", f"no source {name!r}; there are {', '.join(names)}"
        if (model := self.quality_model) is not None:
            bad = [model.bad] if isinstance(model.bad, str) else model.bad
            for key, side in (("good", model.good), ("bad", bad)):
                for name in side:
                    if name not in names:
                        yield f"quality_model.{key}", f"no source {name!r}; there are {', '.join(names)}"
            if both := set(model.good) & set(bad):
                yield "quality_model.bad", f"{', '.join(sorted(both))} cannot be good and bad; name it once"
        if self.executor == "slurm" and self.slurm is None:
            yield "slurm", "missing; data.executor: slurm needs at least slurm.partition"


class Tokenizer(Section):
    """The domain tokenizer: byte-level, lossless for any text."""

    algorithm: Literal["bpe", "unigram"] = "bpe"
    """bpe: merges of frequent pairs, by tokenizers. unigram: the most probable pieces, trained chunk by chunk and
    merged as in BloombergGPT, in memory that does not grow with the text; slower."""
    pretokenization: Literal["qwen2", "qwen35", "llama-bpe", "gpt4", "multiword", "neutral"] = "qwen2"
    """Where text is split before tokens are learnt; no token crosses a split. qwen2: at words, with English
    contractions, and at each digit; qwen35: likewise, with combining marks, as in Thai and Devanagari, in words;
    llama-bpe: as qwen2, with up to three digits together; these can be exported to GGUF, the others not. gpt4: as
    qwen35, words of at most 64 letters; multiword: not between words, so a token may be several words, as in
    BloombergGPT; neutral: without rules of any language. A run that has a tokenizer keeps its own unless the recipe
    names another."""
    vocab_size: Annotated[Int, Field(ge=257)] = 32_768
    """Vocabulary size, including the 256 bytes and the special tokens; a multiple of 128 is fastest on GPUs."""
    min_frequency: Positive = 2
    """Occurrences that a pair needs to become a token; for bpe."""
    min_documents: Annotated[Int, Field(ge=2)] | None = None
    """Leave out words of fewer documents, so that the vocabulary shows no name of one client: choose more documents
    than one client has. None: every word counts."""
    max_token_bytes: Positive = 64
    """Length of the longest token (bytes)."""
    max_train_bytes: Positive = 1_000_000_000
    """Training sample, drawn by the sources' shares; a source that has less is taken whole (bytes). bpe needs about
    20 bytes of memory for each byte of distinct words."""
    chunk_bytes: Positive = 20_000_000
    """Text of one chunk, whose model is merged with the others (bytes); for unigram."""
    special_tokens: Annotated[list[str], Field(min_length=1)] = ["<|endoftext|>"]
    """The first tokens of the vocabulary. The first of them separates documents and begins and ends a text."""
    num_reserved_tokens: Count = 0
    """Tokens <|reserved_0|> and so on at the end of the vocabulary, for later use such as chat roles."""
    pad_vocabulary: bool = False
    """Where the text yields fewer tokens than vocab_size, add reserved tokens instead of refusing."""
    terms: list[str] = []
    """Words whose tokens the report shows, such as mens rea."""
    terms_file: str | None = None
    """Domain terms, one a line; the report counts how many stay one token. None: terms.txt beside data.py."""
    compare_with: list[str] = []
    """Other tokenizers to measure on the same held-out text: Hub id (org/name or org/name@commit), folder or file."""
    from_pretrained: str | None = None
    """Hub id or folder of a byte-level tokenizer to use unchanged. None: model.from_pretrained's, or a new one."""
    revision: str | None = None
    """Commit of a Hub tokenizer, 40 hex digits. None: the head."""
    extend_by: Positive | None = None
    """Tokens to add to that tokenizer: those that shorten the recipe's text most. None: none."""

    def problems(self):
        fixed = 256 + len(self.special_tokens) + self.num_reserved_tokens
        if self.vocab_size < fixed:
            yield (
                "vocab_size",
                f"{self.vocab_size} has no room for the bytes and the other {fixed - 256} fixed tokens",
            )
        if self.min_documents and self.pretokenization == "multiword":
            yield "min_documents", "leaves out nearly all of multiword's pieces, which are phrases; use another one"


class Lora(Section):
    """Low-rank adapters (peft): the weights stay; the product of two thin matrices is trained beside each target."""

    rank: Positive = 16
    """Rows of the thin matrices."""
    alpha: PositiveFloat | None = None
    """The product is scaled by alpha / rank. None: twice the rank."""
    targets: Annotated[list[str], Field(min_length=1)] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    """Projections of every layer that get adapters. The default stands for all, whatever a family calls them."""


class Model(Section):
    """LlamaConfig's fields, or a model to continue. vocab_size is the tokenizer's, max_position_embeddings is
    training.sequence_length or that of the last of data.phases."""

    plain: ClassVar[bool] = False  # feed-forward layers of two matrices, not three; see model/continued.py
    key: ClassVar[str] = "model.from_pretrained"  # as messages name it

    from_pretrained: str | None = None
    """Hub id or folder of a model to continue, with its tokenizer; model/families.py lists the families. Its shape
    replaces the recipe's. None: from scratch."""
    revision: str | None = None
    """Commit of a Hub model, 40 hex digits. None: the head."""
    lora: Lora | None = None
    """With from_pretrained: train adapters only, merged into model/. None: train every weight."""
    hidden_size: Positive | None = None
    """Width."""
    intermediate_size: Positive | None = None
    """Width of the feed-forward layer, about 8/3 of hidden_size."""
    num_hidden_layers: Positive | None = None
    """Depth."""
    num_attention_heads: Positive | None = None
    """Query heads."""
    num_key_value_heads: Positive | None = None
    """Key and value heads; fewer than query heads is grouped-query attention. None: as many."""
    head_dim: Positive | None = None
    """Width of a head. None: hidden_size / num_attention_heads."""
    qk_norm: bool = False
    """Normalise each query and key, as in Qwen 3: the model is exported as Qwen3ForCausalLM."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary position frequencies."""
    rms_norm_eps: PositiveFloat = 1e-5
    """Added to the variance in RMSNorm."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    scaled_residual_init: bool = True
    """Divide it by sqrt(2 num_hidden_layers) for the projections that add to the residual stream."""
    attention_dropout: Fraction = 0.0
    """Fraction of the attention weights set to zero in training; for text that is repeated often."""
    tie_word_embeddings: bool = False
    """Use one matrix for the input embedding and the output projection."""

    def problems(self):
        if self.from_pretrained is not None:
            return  # problems with it are found when it is loaded
        shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        missing = [name for name in shape if getattr(self, name) is None]
        for name in missing:
            yield name, f"missing; it says: {type(self).model_fields[name].description} Or set model.from_pretrained"
        for name in ("lora", "revision"):
            if getattr(self, name) is not None:
                yield name, "needs a model to apply to; set model.from_pretrained"
        if missing:
            return
        heads, key_value_heads = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            yield "hidden_size", f"{self.hidden_size} is not divisible by num_attention_heads={heads}; set head_dim"
        elif (self.head_dim or self.hidden_size // heads) % 2:
            width = self.head_dim or self.hidden_size // heads
            yield "head_dim", f"a head of width {width} cannot be rotated in pairs; make it even"
        if heads % key_value_heads:
            yield "num_key_value_heads", f"{key_value_heads} does not divide num_attention_heads={heads}"


class Rollback(Section):
    """Roll back to the newest checkpoint before several skipped steps, and skip the data around them."""

    after_skips: Annotated[Int, Field(ge=2)] = 3
    """Skipped steps among the last window_steps that trigger a rollback."""
    skip_before: Count = 10
    """Steps skipped before the first of them."""
    skip_after: Count = 10
    """Steps skipped after the last of them."""
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The learning rate is multiplied by this each time, for the rest of the run."""
    max_rollbacks: Positive = 3
    """A run that would roll back more often is stopped."""


class Stability(Section):
    """Steps that would harm the model are not taken; training/stability.py. A step whose loss or gradient is not
    finite is always skipped."""

    max_nonfinite_steps: Positive = 3
    """So many such steps in a row stop the run, which prints their documents."""
    window_steps: Annotated[Int, Field(ge=8)] = 128
    """Steps over which loss and gradient norm are averaged; spikes are detected once half of them are there."""
    max_sigmas: PositiveFloat | None = 6.0
    """A loss or gradient norm so many standard deviations above the mean is a spike, and skipped. None: none is."""
    rollback: Rollback | None = None
    """Policy after several skipped steps. None: none."""


class Average(Section):
    """Averaged weights: model/ then has their average over steps, model_final/ those of the last step."""

    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential moving average: this much of it is kept at each step, such as 0.999. It begins as a plain mean."""
    last_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Plain mean over the last fraction of the steps."""

    def problems(self):
        if (self.ema is None) == (self.last_fraction is None):
            yield "ema", "give either ema or last_fraction"


class Distillation(Section):
    """Models whose mean prediction this one learns, beside the text. They have the same tokenizer, and may have more
    rows than that has tokens."""

    members: Count = 0
    """Models that run_recipe.py trains first, in members/: as this one without distillation, each with a seed of its
    own for weights and order."""
    teachers: list[str] = []
    """Folders of other models to learn from, of the families in model/families.py."""
    weight: Fraction = 0.5
    """Weight of their mean distribution in the minimised loss; the text's next token has the rest."""

    def problems(self):
        if not self.members and not self.teachers:
            yield "members", "there is no model to learn from; set members or teachers"


class Goldfish(Section):
    """Goldfish loss: leave one token in k out of the loss, always the same one after the same words, so that repeated
    text is not learned word for word; mixture/goldfish.py. Validation and evaluation score every token."""

    k: Annotated[Int, Field(ge=2)]
    """One token in so many; a smaller number hides more and costs more of the text."""
    context: Positive = 13
    """Tokens before a token that decide on it."""


class Training(Section):
    """The optimizer, the schedule, the length of training. Processes, precision and sharding are in
    accelerate_configs/."""

    max_tokens: Positive
    """Length of training (tokens, all sources together)."""
    tokens_per_step: Positive | None = None
    """Tokens in one optimizer step over all processes; gradient accumulation follows from it. None: by the rule for
    the model's size in planning/training_rules.py."""
    sequence_length: Annotated[Int, Field(ge=2)]
    """Tokens in one training sequence."""
    per_device_train_batch_size: Positive = 8
    """Most sequences in one forward pass on one device, as its memory allows; the largest number up to this that
    divides a step among the devices is used, and printed."""
    max_seconds: PositiveFloat | None = None
    """Train for about this long: max_tokens is reduced once, by the speed of the first steps (seconds)."""
    optimizer: Literal["adamw", "muon"] | None = None
    """adamw; or muon: torch.optim.Muon for the matrices of the layers and AdamW for the rest. None: muon for a new
    model (experiments/README.md), adamw for a continued one."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. None: by the rule for the model's size in planning/training_rules.py."""
    min_learning_rate_fraction: Fraction = 0.0
    """Learning rate at the last step as a fraction of the peak."""
    lr_scheduler_type: Literal["warmup_stable_decay", "cosine"] = "warmup_stable_decay"
    """Shape after the warm-up."""
    warmup_steps: Count | None = None
    """Steps over which the learning rate rises. None: a twentieth of all steps, at most 500."""
    decay_fraction: Fraction = 0.2
    """Last fraction of the steps, over which warmup_stable_decay decays."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of matrices and embeddings."""
    decay_gains: bool = False
    """Apply weight decay to the gains of the norms as well."""
    dropout: Fraction | None = None
    """Fraction of the embeddings, and of what attention and feed-forward layers add to them, set to zero in training;
    for text that is repeated often. The model files do not hold it. What is dropped follows from seed, step and
    process, so another number of processes drops others. None: nothing."""
    average: Average | None = None
    """Average the weights over steps. None: model/ has those of the last step."""
    distillation: Distillation | None = None
    """Learn from other models too, such as several trained on the same text. None: from the text alone."""
    adam_beta1: Fraction = 0.9
    """AdamW's first decay rate."""
    adam_beta2: Fraction = 0.95
    """AdamW's second decay rate."""
    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to it."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log-sum-exp of the logits in the minimised loss, such as 1e-4; keeps logits from drifting.
    The logged loss excludes it."""
    document_masking: bool = True
    """Documents in one sequence do not see each other. false: they do, which is faster with sdpa."""
    attn_implementation: Literal["auto", "varlen", "sdpa", "flex_attention"] = "auto"
    """varlen computes nothing that the borders of documents hide, without a mask: torch's FlashAttention, on GPUs from
    Ampere on in bf16. sdpa runs everywhere, flex_attention on GPUs. auto: varlen on such a GPU, and on a processor for
    2,048 tokens or more with document masking; plain attention on a processor in bf16 up to 256 tokens; else sdpa."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer and recompute the rest in the backward pass: a third more work for a fraction
    of the memory."""
    torch_compile: bool = True
    """Compile the forward and backward pass; without a C++ compiler training runs uncompiled, with a note."""
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Trackers beside metrics.jsonl. tensorboard writes below the run folder; the others need their package."""
    logging_steps: Positive = 10
    """A line in metrics.jsonl every so many steps."""
    eval_steps: Positive = 500
    """Validation bits per byte every so many steps, and at the end."""
    max_eval_bytes: Positive = 1_000_000
    """Validation text scored each time, per source (bytes)."""
    eval_tasks: list[Name] = []
    """Tasks below eval/tasks/ (no groups) scored with it, by likelihood and without examples."""
    max_eval_items: Positive = 100
    """Items scored each time, per task."""
    save_steps: Positive = 500
    """A checkpoint every so many steps, and at the end."""
    save_total_limit: Positive = 2
    """Checkpoints kept; at least 2, since the newest may be damaged."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of this are kept for good. None: none is."""
    goldfish: Goldfish | None = None
    """Tokens left out of the loss, for text that is repeated often. None: none."""
    stability: Stability = Stability()
    """Steps that are skipped, and what follows."""

    @field_validator("attn_implementation", mode="before")
    @classmethod
    def name_what_replaced(cls, value: object) -> object:
        """Refuse the value of earlier recipes that needed the package flash-attn."""
        if value == "flash_attention_2":
            raise ValueError("write auto or varlen: torch itself has FlashAttention")
        return value

    @property
    def max_steps(self) -> int:
        return self.max_tokens // self.tokens_per_step

    def problems(self):
        length = self.sequence_length
        if self.tokens_per_step and self.tokens_per_step % length:
            below, above = (k * length for k in divmod_neighbours(self.tokens_per_step, length))
            yield (
                "tokens_per_step",
                f"{self.tokens_per_step} is not divisible by sequence_length={length}; nearest: "
                + (f"{below} or {above}" if below else f"{above}"),
            )
        if self.max_tokens < self.sequence_length:
            yield (
                "max_tokens",
                f"{self.max_tokens} is less than one sequence of sequence_length={self.sequence_length}",
            )
        if self.save_total_limit < 2:
            yield "save_total_limit", "1 leaves nothing to resume from when the newest checkpoint is damaged; use 2"


class Plan(Section):
    """The budget that plan_run.py plans for: one of flops, device_hours, hours or money. No other stage reads it."""

    device: DeviceName = "h100-sxm"
    """Accelerator, one of planning/devices.py; cpu is this machine, measured."""
    num_devices: Positive | None = None
    """Devices that train together. None: 8, and for cpu one."""
    flops: PositiveFloat | None = None
    """Budget as model FLOPs, about 6 * parameters * tokens; reserve and recomputation come on top."""
    device_hours: Hours | None = None
    """Budget as hours of one device, such as GPU-hours."""
    hours: Hours | None = None
    """Budget as hours of all devices, on the clock; also as '7 days'."""
    money: Money | None = None
    """Budget in money; also as '$500'."""
    price_per_device_hour: Money | None = None
    """Price of an hour of one device. None: that of planning/devices.py, in US dollars."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Currency of money and price_per_device_hour (ISO 4217)."""
    utilisation_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the device's peak that training reaches, with recomputation counted as work. None: as stated in
    planning/devices.py for the attention function: 0.4 for varlen, 0.2 for sdpa with a mask."""
    reserve_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Fraction of the budget kept for failures and restarts; BloombergGPT's 0.3."""
    recomputation_factor: Annotated[float, Field(ge=1)] = 1.0
    """Work of a step relative to one without activation checkpointing; 1.33 with it."""
    domain: Name | None = None
    """Domain (or source) that the model is for. None: that of the first source."""
    domain_bytes: Bytes | None = None
    """Text of the domain (bytes); also as 5GB. None: as counted in documents/stats.json."""
    general_bytes: Bytes | None = None
    """Other text (bytes); also as 5GB. None: as counted in documents/stats.json; without one, max_bytes of the other
    sources, or as much as the domain's least share leaves room for."""
    min_domain_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least share of the domain. None: data.min_shares, or the sum of its sources' shares, or 0.5."""
    bytes_per_token: PositiveFloat | None = None
    """None: as measured in tokenizer/report.json, or 4.4, a domain tokenizer's of size 8,192 on legal text."""
    vocab_size: Annotated[Int, Field(ge=257)] | Literal["choose"] | None = None
    """Vocabulary size; choose: by the vocabulary law. None: tokenizer.vocab_size."""
    law: Literal["chinchilla_1", "chinchilla_2", "chinchilla_3", "besiroglu", "kaplan"] = "besiroglu"
    """Law that sets the size; planning/scaling_laws.py. All are reported."""

    @property
    def devices(self) -> int:
        return self.num_devices or (1 if self.device == "cpu" else 8)

    def budgets(self) -> dict[str, float]:
        """Return the budgets that are set."""
        values = {key: getattr(self, key) for key in ("flops", "device_hours", "hours", "money")}
        return {key: value for key, value in values.items() if value is not None}

    def problems(self):
        budgets = self.budgets()
        if len(budgets) > 1:
            yield next(iter(budgets)), f"{' and '.join(budgets)} are each a budget; keep one of them"
        if self.money is not None and self.price_per_device_hour is None and self.currency != "USD":
            yield "price_per_device_hour", f"missing in {self.currency}; the price list is in USD"


class Vocabulary(Section):
    """The sizes that choose_vocabulary.py compares for tokenizer.vocab_size. No other stage reads it."""

    sizes: Annotated[list[Annotated[Int, Field(ge=257)]], Field(min_length=2)] = [
        2048,
        4096,
        8192,
        16_384,
        32_768,
        65_536,
    ]
    """Sizes of the tokenizers that are trained and measured; BloombergGPT tried 25,000 to 550,000."""
    trained_sizes: list[Annotated[Int, Field(ge=257)]] | None = None
    """Sizes that small models are trained with, at equal FLOPs; []: none. None: the optimum of the vocabulary law for
    the small model, at least 512, and 4, 16 and 64 times it."""
    flops: PositiveFloat = 3e12
    """FLOPs of each of these models' training."""
    model: Model = Model(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    """Shape of the small model."""


class Evaluation(Section):
    """Tasks, prompts and held-out text that eval/run_eval.py scores at the end."""

    tasks: list[Name] = []
    """Tasks below eval/tasks/ (lm-eval YAML)."""
    prompts: list[str] = []
    """Prompts that the model continues at every validation and at the end, for the report and the card."""
    baselines: list[str] = []
    """Models to score on the same text and items: folders, or Hub ids, also `owner/name@revision`. Each is scored with
    this model's context, and with its own where that is longer (at most 8,192 tokens), once for its weights."""
    max_bytes_per_source: Positive = 2_000_000
    """Held-out text scored per source (bytes)."""
    batch_size: Positive = 8
    """Sequences in one forward pass."""
    xz: bool = False
    """Compress the held-out text with xz -9e as a baseline; for corpora of up to about 50 MB."""


class LeakAudit(Section):
    """Limits on what the model may give away. Publishing refuses a run that audit_leaks.py has not audited."""

    max_verbatim_50_fraction: Fraction = 0.02
    """Share of the trained documents that may be continued word for word for 50 tokens, by the upper end of the 95 %
    interval: 0.018 for none of 200."""
    max_personal_values: Count = 0
    """Values of personal data in samples and continuations that may stand in the training text."""
    max_exposure_bits: Annotated[float, Field(ge=0)] | None = None
    """Mean exposure of the records of a level of data.canaries (1.4: chance; 8: the most), by the upper end of the
    95 % interval. None: no limit."""
    max_membership_auc: Fraction | None = None
    """How well the loss may separate trained from unseen documents (0.5: chance; 1: always), by the upper end of the
    95 % interval. None: no limit."""


class Hub(Section):
    """Publishing to the Hub, which uploads nothing unless repo_id is set; publishing/README.md."""

    repo_id: RepoId | None = None
    """Model repository (user-or-org/name). None: only the release folder is made."""
    private: bool = True
    """Keep the repositories private. false: each is made public once it is uploaded, read back and tagged."""
    license: str | None = None
    """Licence of the model, as the Hub spells it, such as apache-2.0. None: other, which names no terms, and which a
    release must state itself if the licence of its base or of a teacher asks for more than a notice."""
    base_license: str | None = None
    """Licence of model.from_pretrained, or of a model of training.distillation.teachers, as its card states it: you
    have read it, and license and repo_id may stand beside it. None: a release that contradicts it is refused."""
    license_file: str | None = None
    """Text of that licence, published as LICENSE. None: this repository's for apache-2.0, otherwise none."""
    language: list[str] = ["en"]
    """Languages of the text (ISO 639-1). Without this key: those of data.languages.keep, if set."""
    confidential: list[Annotated[str, Field(min_length=3)]] = []
    """Words that nothing published may show, such as names of clients: paths, records and the published recipe have
    them removed, and a release that shows one elsewhere is refused, as is a source that is named after one."""
    contact: str | None = None
    """Where to ask for a document's removal, such as an e-mail address. None: the repository's discussions."""
    max_shard_size: Annotated[str, Field(pattern=r"^[1-9]\d*(KB|MB|GB)$")] = "5GB"
    """Largest file of weights; more weights are sharded."""
    revision_steps: Positive | None = None
    """Publish the weights while training, every so many steps, as revisions such as step-0001000; a multiple of
    training.save_steps. None: only the finished model."""
    tokenizer_repo_id: RepoId | None = None
    """Model repository for the tokenizer alone, with its report card. None: not published by itself."""
    dataset_repo_id: RepoId | None = None
    """Dataset repository for the data card and the statistics, without the text. None: not published by itself."""
    dataset_text: bool = False
    """Add the text of the sources whose licence and personal-data setting allow redistribution."""
    gguf: Annotated[list[Literal["f16", "q8_0"]], Field(min_length=1)] | None = None
    """Also publish the model as GGUF files with weights of these types, for llama.cpp and Ollama; needs the package
    gguf and a BPE tokenizer with pretokenization qwen2, qwen35 or llama-bpe. None: no such file."""
    tensorboard: bool = False
    """Add metrics.jsonl as a TensorBoard log, which the Hub shows on the model's page."""
    leak_audit: LeakAudit | None = None
    """Limits on what the model may give away; `{}` sets the defaults. None: publishing needs no audit."""

    @property
    def shown_license(self) -> str:
        return self.license or "other"

    def problems(self):
        repositories = {key: getattr(self, key) for key in ("repo_id", "tokenizer_repo_id", "dataset_repo_id")}
        for key in ("tokenizer_repo_id", "dataset_repo_id"):
            if repositories[key] and self.repo_id is None:
                yield key, "is set without repo_id, so nothing would be uploaded; set hub.repo_id too"
        if self.tokenizer_repo_id and self.tokenizer_repo_id == self.repo_id:
            yield "tokenizer_repo_id", f"{self.repo_id} is the model's; give the tokenizer a repository of its own"
        if self.leak_audit is not None and self.revision_steps is not None:
            yield "revision_steps", "publishes weights before leak_audit can check them; leave one of the two out"
        if self.dataset_text and self.dataset_repo_id is None:
            yield "dataset_text", "is set without dataset_repo_id; set that too"


class Finetune(Section):
    """Fine-tuning a model to summarise or to converse, by recipes/finetune.py; run_recipe.py does not run it."""

    task: Literal["chat"] | None = None
    """chat: learn the answers of conversations, rows with `messages`, or with `prompt` and `completion`; several share
    a sequence. None: learn to summarise."""
    model: str | None = None
    """Hub id or folder of the model to fine-tune, of the families in model/families.py. None: model/ of the run."""
    revision: str | None = None
    """Commit of a Hub model, 40 hex digits. None: the head."""
    train: Source
    """Documents with summaries to train on."""
    test: Source
    """Documents with summaries to score; documents also in train are left out of train."""
    document_field: str = "text"
    """Field of an example with the document."""
    summary_field: str = "summary"
    """Field of an example with the summary."""
    max_train_documents: Positive | None = None
    """Train on the first so many. None: all."""
    max_test_documents: Positive = 200
    """Score on the first so many."""
    template: Literal["plain", "chat"] = "plain"
    """plain: the document, then `Summary:`; chat: the model's own chat template, or a plain one where it has none."""
    instruction: str = "Summarize this text."
    """Instruction before the document, for template: chat."""
    sequence_length: Annotated[Int, Field(ge=16)] = 1024
    """Tokens of document and summary together; a longer document is truncated. A longer conversation is left out."""
    max_summary_tokens: Positive = 160
    """Tokens reserved for the summary, and the most that are generated, of a summary or an answer."""
    lead_sentences: Positive = 3
    """Sentences of the baseline summary: the first ones of a document."""
    lora: Lora | None = None
    """Train adapters only, merged at the end. None: train every weight."""
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the documents."""
    examples_per_step: Positive = 16
    """Examples in one optimizer step over all processes."""
    per_device_train_batch_size: Positive = 4
    """Examples in one forward pass on one device."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate; it warms up over the first twentieth of the steps and decays as a cosine."""
    save_steps: Positive = 100
    """A checkpoint every so many steps, from which a stopped run resumes."""

    def problems(self):
        if self.max_summary_tokens > self.sequence_length // 2:
            text = f"{self.max_summary_tokens} leaves less than half of sequence_length={self.sequence_length}"
            yield "max_summary_tokens", f"{text} for the document; lower it"
        if self.examples_per_step % self.per_device_train_batch_size:
            text = f"{self.examples_per_step} is not a multiple of per_device_train_batch_size"
            yield "examples_per_step", f"{text}={self.per_device_train_batch_size}"


class Recipe(Section):
    """A whole experiment. The machine it runs on is described in accelerate_configs/, not here."""

    run: Run
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    model: Model
    training: Training
    evaluation: Evaluation = Evaluation()
    hub: Hub = Hub()
    plan: Plan = Plan()
    vocabulary: Vocabulary = Vocabulary()
    finetune: Finetune | None = None

    def problems(self):
        training = self.training
        for index, source in enumerate(self.data.sources):
            for word in self.hub.confidential:
                if any(word.lower() in name.lower() for name in (source.name, source.label)):
                    yield (
                        f"data.sources.{index}.name",
                        f"{word} is in hub.confidential, and names and domains of sources are published in every "
                        "figure and card; name it otherwise",
                    )
        if self.data.canaries is not None and self.hub.dataset_text:
            yield "hub.dataset_text", "the text has the records of data.canaries in it; leave one of the two out"
        if (self.hub.revision_steps or 0) % training.save_steps:
            yield (
                "hub.revision_steps",
                f"{self.hub.revision_steps} is not a multiple of training.save_steps={training.save_steps}",
            )
        if self.tokenizer.extend_by is not None and not (self.tokenizer.from_pretrained or self.model.from_pretrained):
            yield "tokenizer.extend_by", "there is no tokenizer to extend; set model.from_pretrained"
        if self.tokenizer.from_pretrained and self.model.from_pretrained:
            yield "tokenizer.from_pretrained", "a continued model keeps its own tokenizer; leave this out"
        if self.tokenizer.revision and not self.tokenizer.from_pretrained:
            yield "tokenizer.revision", "needs a tokenizer to apply to; set tokenizer.from_pretrained"
        if self.model.lora is not None and training.average is not None:
            yield "training.average", "averages whole weights, not adapters; leave it or model.lora out"
        if self.model.lora is not None and training.optimizer == "muon":
            yield "training.optimizer", "muon is for full matrices, not the thin ones of model.lora; use adamw"
        base = training.sequence_length
        micro_tokens = training.per_device_train_batch_size * base
        for index, phase in enumerate(self.data.phases):
            length = phase.sequence_length or base
            if length % base:
                below, above = (k * base for k in divmod_neighbours(length, base))
                text = f"{length} is not a multiple of training.sequence_length={base}; nearest: "
                yield f"data.phases.{index}.sequence_length", text + (f"{below} or {above}" if below else f"{above}")
            elif micro_tokens % length:
                yield (
                    f"data.phases.{index}.sequence_length",
                    f"{length} does not divide training.per_device_train_batch_size * sequence_length = "
                    f"{training.per_device_train_batch_size} * {base} = {micro_tokens}, the tokens of a forward pass; "
                    f"set training.per_device_train_batch_size to a multiple of {length // base}",
                )
        if self.data.fit_to_corpus and any(phase.sequence_length for phase in self.data.phases):
            yield "data.fit_to_corpus", "may shrink the batch below a longer sequence of data.phases; use one of them"
        unset = [name for name in ("tokens_per_step", "learning_rate") if getattr(training, name) is None]
        for name in unset:
            yield f"training.{name}", "missing; the rule that sets it is for new models, not for model.from_pretrained"
        if unset or self.data.fit_to_corpus:
            return  # training is then fitted, not refused
        if training.max_tokens < training.tokens_per_step:
            text = f"{training.max_tokens} is less than one step of tokens_per_step={training.tokens_per_step}"
            yield "training.max_tokens", text
        elif (training.warmup_steps or 0) >= training.max_steps:
            steps = f"max_tokens / tokens_per_step = {training.max_steps} steps"
            yield "training.warmup_steps", f"{training.warmup_steps} is not less than {steps}"

    def scored_as(self) -> str:
        """Return how metrics.jsonl begins the scores of what model/ holds: the last weights, or their average."""
        return "eval" if self.training.average is None else "average"

    def member_folder(self, number: int) -> Path:
        """Return the run folder of a model of training.distillation.members."""
        return Path(self.run.output_dir) / "members" / str(number)

    def member(self, number: int) -> "Recipe":
        """Return the recipe of a model of training.distillation.members."""
        member = self.model_copy(deep=True)
        member.run.output_dir, member.run.seed = str(self.member_folder(number)), self.run.seed + 1 + number
        member.training.distillation = None
        return member

    def teacher_folders(self) -> list[Path]:
        """Return the folders of the models that this one learns from, its members first."""
        distillation = self.training.distillation
        if distillation is None:
            return []
        members = [self.member_folder(number) / "model" for number in range(distillation.members)]
        return members + [Path(folder) for folder in distillation.teachers]

    def member_folders(self) -> list[Path]:
        """Return the run folders of the models of training.distillation.members."""
        distillation = self.training.distillation
        return [self.member_folder(number) for number in range(distillation.members if distillation else 0)]

    def dump_yaml(self) -> str:
        """Return the resolved recipe, every key with its value, as YAML that loads to an equal recipe."""
        stream = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False
        yaml.dump(self.model_dump(), stream)
        return stream.getvalue()


def divmod_neighbours(value: int, unit: int) -> tuple[int, int]:
    """Return the numbers of whole units just below (or at) and above value."""
    return value // unit, value // unit + 1


def main() -> None:
    schema = Recipe.model_json_schema()
    schema["properties"]["base"] = {
        "anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array"}],
        "description": "YAML file that this one overrides, or several; later ones win.",
    }
    # An overlay states only what differs, so an editor must not ask for the rest.
    schema.pop("required")
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    print(json.dumps(schema, indent=2))


if __name__ == "__main__":
    main()
