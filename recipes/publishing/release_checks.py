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
from pathlib import Path

import torch
from huggingface_hub import get_token
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recipe_config import RecipeError


SECRETS = {
    "a Hugging Face token": rb"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}",
    "an AWS access key": rb"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])",
    "a Google API key": rb"AIza[0-9A-Za-z_-]{35}",
    "a GitHub token": rb"gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}",
    "a Slack token": rb"xox[abeoprs]-[0-9A-Za-z-]{20,}",
    "an Azure storage key": rb"AccountKey=[A-Za-z0-9+/]{80,}={0,2}",
    "an API key": rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in a URL": rb"://[^\s/:@\"'\x00-\x20\x7f-\xff]{1,64}:[^\s/:@\"'\x00-\x20\x7f-\xff]{1,64}@",
}
# Environment variables whose value is always a secret.
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY")
MIN_SECRET_CHARACTERS = 12
# Names that do not identify anyone and occur in many files.
COMMON_NAMES = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody", "localhost", "work", "home"}
# The first bytes of a file with this suffix; a pickle or an archive under another name is refused.
BEGINNINGS = {".gguf": b"GGUF", ".png": b"\x89PNG\r\n\x1a\n", ".parquet": b"PAR1"}
TEXT = {".json", ".jsonl", ".md", ".yaml", ".py", ".html", ".jinja", ""}


def secret_patterns(public_names: set[str]) -> dict[str, re.Pattern]:
    """Return patterns that no released file may match, by kind: credentials, and names of the user and the machine.

    Args: public_names: names of the user that may appear, such as the owner of the repository.
    """
    patterns = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
    values = {name: value for name, value in os.environ.items() if SECRET_VARIABLE.search(name.upper())}
    values["HF_TOKEN"] = get_token() or ""
    for name, value in values.items():
        if len(value) >= MIN_SECRET_CHARACTERS and not os.path.exists(value):
            patterns[f"the value of {name}"] = re.compile(re.escape(value.encode()))
    if home := home_folder():
        # A path of one part, such as /root, may occur alone in a tokenizer's vocabulary.
        follows = rb"(?![\w-])" if home.count("/") > 1 else rb"/"
        patterns["the path of your home folder"] = re.compile(rb"(?<!\w)" + re.escape(home.encode()) + follows)
    for kind, name in {"your user name": user_name(), "this machine's name": socket.gethostname()}.items():
        if len(name) < 4 or name.lower() in COMMON_NAMES | public_names:
            continue
        escaped = re.escape(name.encode())
        if name.isalpha():  # a vocabulary may contain the word, so only as part of a path or an address
            patterns[kind] = re.compile(rb"[/\\@]" + escaped + rb"(?=[/\\:.\s\"'])|(?<![\w.-])" + escaped + rb"@\w")
        else:
            patterns[kind] = re.compile(rb"(?<![\w.-])" + escaped + rb"(?![\w-])")
    return patterns


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


def refuse_secrets(folder: Path, public_names: set[str]) -> None:
    """Search every byte of a folder. Raises: RecipeError: it names files and kinds, never the secret itself."""
    patterns, problems = secret_patterns(public_names), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for kind, pattern in patterns.items():
                if found := pattern.search(content):
                    name = path.relative_to(folder)
                    problems.append(f"{name}, byte {found.start()}: looks like {kind}; take it out of the run's files")
                del found  # it keeps the mapping open
    if problems:
        raise RecipeError(*problems)


def refuse_secrets_in_text(texts: list[str], ids: list[str], where: str, public_names: set[str]) -> None:
    """Search the text of documents, since their files are compressed. Raises: RecipeError: it names the documents."""
    patterns = secret_patterns(public_names)
    problems = [
        f"{where}, document {document}: looks like {kind}; add it to data.skip.documents, or do not publish the text"
        for text, document in zip(texts, ids, strict=True)
        for kind, pattern in patterns.items()
        if pattern.search(text.encode())
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
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)  # the embedding, which is saved once
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
