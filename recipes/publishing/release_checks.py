# SPDX-License-Identifier: Apache-2.0
"""Check a release before it leaves this machine: secrets, names, the content of files, whether the model works.

Every check reads the folder that would be uploaded, not the run that it was made from.
"""

import getpass
import json
import mmap
import os
import re
import socket
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import get_token
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from recipe_config import RecipeError
from vocabulary.pretokenization import as_characters


QUOTES = rb"[\\\"'\]]{0,7}"  # once and twice in JSON too, and the end of a subscript
# Between a name and its value, in JSON, YAML, XML, a shell and Python, with an annotation too.
GAP = (
    QUOTES + rb"\s{0,4}(?::\s{0,4}[\w.|\[\] ]{1,32}=|:=|=>|[:=>])"
    rb"\s{0,4}(?:[\w.]{0,24}\()?[rbfu]{0,2}[\\\"']{0,4}"
)
# As words of a command or arguments of a call too, for values whose form says what they are.
LOOSE_GAP = rb"(?:" + GAP + rb"|[\\\"']{0,4},?\s{1,4}[rbfu]{0,2}[\\\"']{0,4})"
# Kind -> the literals that such a secret begins with, and its pattern. The literals are searched for first: that is
# many times as fast as a regular expression without a fixed beginning.
SECRETS = {
    "a Hugging Face token": ((b"hf_",), rb"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}"),
    "an AWS access key": ((b"AKIA", b"ASIA"), rb"A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    "an AWS secret key": (
        (b"secret", b"Secret", b"SECRET"),
        rb"(?i:secret[_-]?(?:access[_-]?)?(?:key)?"
        + LOOSE_GAP
        + rb")(?=[^\s0-9]{0,99}[0-9])(?=[^\sA-Z]{0,99}[A-Z])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    ),
    "a Google API key": ((b"AIza",), rb"AIza[0-9A-Za-z_-]{35}"),
    "a Google client secret": ((b"GOCSPX-",), rb"GOCSPX-[A-Za-z0-9_-]{24,}"),
    "a Google access token": ((b"ya29.",), rb"ya29\.[A-Za-z0-9_-]{20,}"),
    "a GitHub token": ((b"gh", b"github_pat_"), rb"gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}"),
    "a GitLab token": ((b"gl",), rb"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat|ffct)-[A-Za-z0-9_.-]{20,}"),
    "an npm token": (
        (b"npm_", b"_auth"),
        rb"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])|_auth(?:Token)?"
        + GAP
        + rb"(?=[^\s0-9]{0,99}[0-9])[A-Za-z0-9+/=_-]{20,}",
    ),
    "a Stripe key": (
        (b"sk_", b"rk_", b"whsec_"),
        rb"(?<![A-Za-z0-9])(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/]{24,})",
    ),
    "a Weights & Biases key": (
        (b"wandb", b"WANDB"),
        rb"wandb_v1_[A-Za-z0-9_]{20,}|(?i:wandb(?:_?api_?key"
        + LOOSE_GAP
        + rb"|\.login\([^)]{0,200}?|\s{1,4}login\s[^\n]{0,80}?|\.ai\s[^@]{0,80}?password\s+)"
        rb"(?<![0-9A-Za-z])[0-9a-f]{40})(?![0-9A-Za-z])",
    ),
    "a Slack token": ((b"xox", b"xapp-"), rb"(?:xox[abcdeoprs]|xapp)-[0-9A-Za-z%-]{20,}"),
    "a Slack webhook": (
        (b"hooks.slack.com/",),
        rb"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/]{30,}",
    ),
    "an Azure storage key": (
        (b"ccountKey", b"ccount_key", b"CCOUNT_KEY"),
        rb"(?i:ccount_?key" + LOOSE_GAP + rb")[A-Za-z0-9+/]{80,}={0,2}",
    ),
    "an Azure shared access signature": ((b"sig=",), rb"sig=[A-Za-z0-9%+/]{43,}?(?:%3[dD]|=)"),
    "a JSON web token": ((b"eyJ",), rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    # A digit among capital and small letters: a law's "bearer" has words and addresses after it.
    "a Bearer token": (
        (b"earer", b"EARER"),
        rb"(?i:earer)\s{1,4}(?=[^\s0-9]{0,99}[0-9])(?=[^\sA-Z]{0,99}[A-Z])(?=[^\sa-z]{0,99}[a-z])[A-Za-z0-9._~+/-]{24,}",
    ),
    "a password in an Authorization header": (
        (b"uthorization", b"UTHORIZATION"),
        rb"(?i:uthorization"
        + LOOSE_GAP
        + rb"(?:bearer|basic|token|api-?key)\s{1,4})(?=[^\s0-9]{0,99}[0-9])[A-Za-z0-9._~+/=-]{16,}",
    ),
    "an API key": ((b"sk-",), rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}"),
    "a private key": ((b"-----BEGIN ",), rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a password in a URL": (
        (b"://",),
        rb"://[^\s/:@\"'\x00-\x20\x7f-\xff]{0,64}:[^\s/:@\"'\x00-\x20\x7f-\xff]{1,64}@",
    ),
    # Under a name that says it is one; a number, a path, an address, a variable and a call are none.
    "the value of a secret setting": (
        (b"TOKEN", b"SECRET", b"PASS", b"CREDENTIAL", b"KEY", b"_PWD", b"_AUTH")
        + (b"oken", b"ecret", b"assw", b"assphrase", b"redential", b"key", b"Key"),
        rb"(?:TOKEN|SECRET|(?<![A-Z])PASS(?:WORD|WD|PHRASE)?|CREDENTIALS?|(?:(?<=_)|(?<=API)|(?<=ACCESS))KEYS?|_PWD|_AUTH"
        rb"|(?:(?<=access_t)|(?<=accessT)|(?<=auth_t)|(?<=authT)|(?<=refresh_t)|(?<=refreshT)|(?<=api_t)|(?<=apiT))oken"
        rb"|ecret|ass(?:w(?:or)?d|phrase)|redentials?"
        rb"|(?i:(?:(?<=api)|(?<=api[_-])|(?<=access)|(?<=access[_-])|(?<=private)|(?<=private[_-]))key))"
        + GAP
        + rb"(?![/.~$]|-?[0-9.]{1,40}e[+-]?[0-9]{1,3}(?![\w.-]))(?=[^\s0-9]{0,99}[0-9])(?=[^\sA-Za-z]{0,99}[A-Za-z])"
        rb"[\w!#$%&*+./=?^~-]{12,400}+(?![(\[{:@\xff])",
    ),
}
# Environment variables whose value is always a secret.
SECRET_VARIABLE = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|WEBHOOK|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|(^|_)(PASS|PWD|KEYS?|AUTH|DSN)$"
)
MIN_SECRET_CHARACTERS = 12
# Names that do not identify anyone and occur in many files.
COMMON_NAMES = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody", "localhost", "work", "home"}
# The first bytes of a file with this suffix; a pickle or an archive under another name is refused.
BEGINNINGS = {".gguf": b"GGUF", ".png": b"\x89PNG\r\n\x1a\n", ".parquet": b"PAR1"}
TEXT = {".json", ".jsonl", ".md", ".yaml", ".py", ".html", ".jinja", ""}


class Secret(NamedTuple):
    """What is searched for: `pattern` where one of `literals` begins."""

    literals: tuple[bytes, ...]
    pattern: re.Pattern

    def find(self, content: bytes | mmap.mmap, end: int) -> int | None:
        """Return where the first one begins before `end`; None if there is none."""
        for literal in self.literals:
            start = content.find(literal, 0, end)
            while start >= 0:
                if self.pattern.match(content, start, end):
                    return start
                start = content.find(literal, start + 1, end)
        return None


def all_secrets(public_names: set[str], confidential: Iterable[str] = ()) -> dict[str, Secret]:
    """Return what no released file may contain, by kind: credentials, and names of the user and the machine.

    Args:
        public_names: names of the user that may appear, such as the owner of the repository.
        confidential: other words that may not appear, in any usual spelling.
    """
    secrets = {kind: Secret(literals, re.compile(pattern)) for kind, (literals, pattern) in SECRETS.items()}
    for word in confidential:
        written = spell(word)
        begins = rb"(?:(?<![A-Za-z0-9])|(?<=\\u[0-9a-f]{4}))"  # or after a character that JSON escapes
        pattern = begins + rb"(?:" + b"|".join(map(re.escape, written)) + rb")(?![A-Za-z0-9])"
        secrets[f"{word!r} of hub.confidential"] = Secret(written, re.compile(pattern))
    values = {name: value for name, value in os.environ.items() if SECRET_VARIABLE.search(name.upper())}
    values["HF_TOKEN"] = get_token() or ""
    for name, value in values.items():
        if len(value) >= MIN_SECRET_CHARACTERS and not os.path.exists(value):
            written = tuple({value.encode(errors="surrogateescape"), json.dumps(value)[1:-1].encode()})
            secrets[f"the value of {name}"] = Secret(written, re.compile(b"|".join(map(re.escape, written))))
    if home := home_folder():
        # A path of one part, such as /root, may occur alone in a tokenizer's vocabulary.
        follows = rb"(?![\w-])" if home.count("/") > 1 else rb"/"
        literal = home.encode()
        secrets["the path of your home folder"] = Secret(
            (literal,), re.compile(rb"(?<!\w)" + re.escape(literal) + follows)
        )
    for kind, name in {"your user name": user_name(), "this machine's name": socket.gethostname()}.items():
        if len(name) < 4 or name.lower() in COMMON_NAMES | public_names:
            continue
        escaped = re.escape(name.encode())
        if name.isalpha():  # a vocabulary may contain the word, so only as part of a path or an address
            pattern = rb"(?<=[/\\@])" + escaped + rb"(?=[/\\:.\s\"'])|(?<![\w.-])" + escaped + rb"@\w"
        else:
            pattern = rb"(?<![\w.-])" + escaped + rb"(?![\w-])"
        secrets[kind] = Secret((name.encode(),), re.compile(pattern))
    return secrets


def spell(word: str) -> tuple[bytes, ...]:
    """Return how text, JSON and vocabularies write a word, in small and capital letters, with accents joined or apart.

    A byte-level vocabulary has a letter for each byte, and one of SentencePiece's kind has a mark for a space.
    """
    cases = {word, word.lower(), word.upper(), word.capitalize(), word.title()}
    texts = {unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in cases} | cases
    texts |= {as_characters(text.encode()) for text in texts} | {text.replace(" ", "\u2581") for text in texts}
    texts |= {json.dumps(text)[1:-1] for text in texts}
    return tuple(sorted(text.encode() for text in texts))


def home_folder() -> str | None:
    """Return the home folder; None if there is none, or if it is the root, which identifies nobody."""
    try:
        home = str(Path.home())
    except RuntimeError:  # no HOME and no account, as in a container
        return None
    return None if home == "/" else home


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return ""


def refuse_secrets(folder: Path, public_names: set[str], confidential: Iterable[str] = ()) -> None:
    """Search every byte of a folder, but of weights only the header; the arguments are those of all_secrets.

    Raises: RecipeError: it names files and kinds, never the secret itself.
    """
    secrets, problems = all_secrets(public_names, confidential), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = len(content)
            if path.suffix == ".safetensors":
                end = min(end, 8 + int.from_bytes(content[:8], "little"))
            for kind, secret in secrets.items():
                if (start := secret.find(content, end)) is not None:
                    name = path.relative_to(folder)
                    problems.append(f"{name}, byte {start}: looks like {kind}; take it out of the run's files")
    if problems:
        raise RecipeError(*problems)


def refuse_secrets_in_text(
    texts: list[str], ids: list[str], where: str, public_names: set[str], confidential: Iterable[str] = ()
) -> None:
    """Search the text of documents, since their files are compressed. Raises: RecipeError: it names the documents."""
    secrets, problems = all_secrets(public_names, confidential), []
    for text, document in zip(texts, ids, strict=True):
        content = text.encode()
        problems += [
            f"{where}, document {document}: looks like {kind}; "
            "add it to data.skip.documents, or do not publish the text"
            for kind, secret in secrets.items()
            if secret.find(content, len(content)) is not None
        ]
    if problems:
        raise RecipeError(*problems[:20])


def refuse_odd_files(folder: Path) -> None:
    """Refuse links, hidden files, and files whose content does not match their name, such as a pickle.

    Raises: RecipeError: it lists all of them.
    """
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            problems.append(f"{name} is a link, which could lead anywhere")
        elif path.name.startswith(".") and name != ".eval_results":
            problems.append(f"{name} is a hidden file")
        elif path.is_file() and (problem := find_other_content(path)):
            problems.append(f"{name} {problem}")
    if problems:
        raise RecipeError(*(f"{folder}: {problem}; it is not published" for problem in problems))


def find_other_content(path: Path) -> str | None:
    """Return why a file's content does not match its name; None if it does."""
    if path.suffix in TEXT:
        try:
            text = path.read_text(encoding="utf-8")
            for document in {".json": [text], ".jsonl": text.removesuffix("\n").split("\n")}.get(path.suffix, []):
                json.loads(document)
        except ValueError as error:
            return f"is not what its name says ({error})"
        return None
    if path.suffix == ".safetensors":
        try:
            read_tensor_shapes(path)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error):
            return "is not safetensors"
        return None
    if ".tfevents." in path.name:
        with path.open("rb") as file:
            return None if b"brain.Event:2" in file.read(64) else "is not a TensorBoard log"
    beginning = BEGINNINGS.get(path.suffix)
    with path.open("rb") as file:
        if beginning is None or file.read(len(beginning)) != beginning:
            return "is of a kind that is not published, or not what its name says"
    return None


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file's header (https://huggingface.co/docs/safetensors)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size - 8:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def check_tensors(folder: Path) -> None:
    """Compare names and shapes of the weights with the config's, without loading weights.

    Raises: RecipeError: a tensor is missing, unexpected or of another shape, or a config names code to run.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in json.loads((folder / name).read_text(encoding="utf-8")):
            raise RecipeError(f"{folder / name}: auto_map names code to run, which is not published; remove it")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = model.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)  # the embedding, which is saved once
    # Under the names of the files, which differ from the model's for GPT-NeoX.
    expected = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, weights).items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        found |= read_tensor_shapes(path)
    wrong = [f"missing {sorted(expected.keys() - found.keys())}"] if expected.keys() - found.keys() else []
    wrong += [f"unexpected {sorted(found.keys() - expected.keys())}"] if found.keys() - expected.keys() else []
    wrong += [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        raise RecipeError(
            f"{folder}: the weights are not those of config.json: {'; '.join(wrong)}; run pretrain again"
        )


@torch.no_grad()
def check_model(release: Path, original: Path) -> None:
    """Load model and tokenizer from the release; compare tensors, parameter count and logits; generate a few tokens.

    Raises: RecipeError: it says what differs.
    """
    check_tensors(release)
    logits = []
    for folder in (original, release):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        inputs = tokenizer("It is so.", return_tensors="pt")
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        wrong = "; ".join(f"{kind}: {sorted(map(str, found))}" for kind, found in loaded.items() if found)
        if wrong:
            raise RecipeError(f"{original} does not load as it was saved: {wrong}; run pretrain again")
        logits.append(model.eval()(inputs["input_ids"]).logits)
        count = sum(parameter.numel() for parameter in model.parameters())
        output = model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
        del model  # two may not fit in memory
    counted = json.loads((release / "training.json").read_text(encoding="utf-8"))["parameters"]
    expected, trained = counted["total"], counted.get("trained", counted["total"])
    # Earlier runs, which do not count adapters apart, have them in the total.
    is_merged = "adapters" not in counted and trained < expected and expected - trained <= count < expected
    if count != expected and not is_merged:
        raise RecipeError(
            f"{original} has {count:,} parameters, not the {expected:,} of training.json; run pretrain again"
        )
    if not torch.equal(*logits):
        raise RecipeError(
            f"{original}: the copy's logits differ, or are not numbers; look at the loss in metrics.jsonl"
        )
    if output.shape[1] <= inputs["input_ids"].shape[1]:
        raise RecipeError(f"{original} generates no token; look at the loss in metrics.jsonl")
