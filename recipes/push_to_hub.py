# SPDX-License-Identifier: Apache-2.0
"""Stage 6: put together what a run may show, check it, and publish it to the Hub if the recipe names a repository.

In:   <run.output_dir>/model/ and what the stages before it recorded, hub.* of the recipe. Without eval/ and figures/
      the release has no results, and its card says so.
Out:  <run.output_dir>/release/: the model's files, README.md (the card), data_card.md without text of the sources, the
      records and manifest.json, which has the bytes and sha256 of each. With hub.repo_id also that repository, in one
      commit, and publish.json.

    python recipes/push_to_hub.py --config recipes/legal/quickstart.yaml                   # uploads nothing
    hf auth login
    python recipes/push_to_hub.py --config recipes/legal/quickstart.yaml --hub.repo_id=me/tiny-legal

A file goes in because it is named here, never because it lies in a folder, and only as the stage that wrote it left
it. The token comes from `hf auth login` or the environment variable HF_TOKEN, never from a recipe or an argument.
"""

import hashlib
import json
import mmap
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus.data_card import render_data_card
from model_card import write_card
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from run_folder import RECORD, file_sha256, is_finished, new_output, output_folder, read_record, require, write_json


# The allow-list: what of the run folder is published, and under which name. Model files and figures keep theirs.
RECORDS = {
    "documents/stats.json": "data_stats.json",
    "tokenizer/report.json": "tokenizer_report.json",
    "training.json": "training.json",
    "metrics.jsonl": "metrics.jsonl",
}
CHECKED = {"documents/decontamination.json": "decontamination.json"}  # where the text was checked
RESULTS = {"evaluate": {"eval/results.json": "results.json"}, "report": {"report.html": "report.html"}}
MODEL_FILE = re.compile(
    r"(generation_)?config\.json|tokenizer(_config)?\.json|special_tokens_map\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
FIGURE_FILE = re.compile(r"[a-z0-9_]+\.png")
SECRETS = {
    "a Hugging Face token": re.compile(rb"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}"),
    "an AWS access key": re.compile(rb"AKIA[0-9A-Z]{16}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a password in a URL": re.compile(rb"://[^\s/:@\"'\x00-\x20\x7f-\xff]{1,64}:[^\s/:@\"'\x00-\x20\x7f-\xff]{1,64}@"),
}
KEPT_REMOTE = ".gitattributes"  # the Hub's own
REQUEST_TIMEOUT_SECONDS = 60.0  # without an answer or a byte of it; huggingface_hub itself would wait for ever
REMEDIES = {
    401: "the token is wrong or has expired: make one with write access at https://huggingface.co/settings/tokens and "
    "run: hf auth login",
    403: "the token may not write there: use one with write access to it, or set hub.repo_id to a name of your own",
    404: "there is no such repository, or the token may not see it: check hub.repo_id and the token",
    412: "someone else committed meanwhile: look at what changed there first",
}


def collect(recipe: Recipe) -> tuple[dict[str, Path], list[str]]:
    """Choose the files of a release, {name in it: path}, and say which results are left out and why.

    Raises: RecipeError: a stage is missing or out of date, or a file is not as its stage left it.
    """
    run = Path(recipe.run.output_dir)
    recorded = {}
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain"):
        recorded |= recorded_files(require(recipe, stage))
    names, notes = dict(RECORDS), []
    names |= {relative: name for relative, name in CHECKED.items() if run / relative in recorded}
    for stage, files in RESULTS.items():
        folder = output_folder(recipe, stage)
        if read_record(folder) is None:
            if folder.exists():
                notes.append(f"{folder} is left out: nothing says what it was made from; run recipes/run_recipe.py")
            continue
        recorded |= recorded_files(require(recipe, stage))
        names |= files
    # Everything that lies in these two folders has to be of a kind that belongs there.
    names |= {f"model/{path.name}": path.name for path in (run / "model").iterdir() if path.name != RECORD}
    if "report.html" in names:
        names |= {f"figures/{p.name}": f"figures/{p.name}" for p in (run / "figures").iterdir() if p.name != RECORD}

    problems = []
    for relative in names:
        path, folder = run / relative, Path(relative).parent.name
        allowed = {"model": MODEL_FILE, "figures": FIGURE_FILE}.get(folder)
        if path.is_symlink() or path.parent.is_symlink():
            problems.append(f"{path} is a link, which could lead anywhere; put the file itself there")
        elif allowed and not allowed.fullmatch(path.name):
            problems.append(f"{path} does not belong to a release; move it away")
        elif not path.is_file():
            problems.append(f"{path} is missing; run the stage that writes it again")
        elif folder and recorded.get(path) != file_sha256(path):
            problems.append(f"{path} is not the file that its stage wrote; run that stage again with --overwrite")
    if problems:
        raise RecipeError(*problems)
    return {name: run / relative for relative, name in names.items()}, notes


def recorded_files(folder: Path) -> dict[Path, str]:
    """Return the sha256 that a stage recorded of each of its files."""
    return {folder / name: file["sha256"] for name, file in read_record(folder)["files"].items()}


def build_release(recipe: Recipe) -> Path:
    """Make the release folder: copy, render the card, look for what must not get out, load the model from it."""
    files, notes = collect(recipe)
    for note in notes:
        print(f"publish: note: {note}")
    with new_output(recipe, "publish") as folder:
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for name, path in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            if path.parent.name not in ("model", "figures"):
                text = relative_paths(path.read_text(encoding="utf-8"))
                if name == "report.html":
                    text = relink(text, {path: name for name, path in files.items()}, Path(recipe.run.output_dir))
                (folder / name).write_text(text, encoding="utf-8")
            else:
                shutil.copyfile(path, folder / name)
        shown = Recipe.model_validate(without_home(recipe.model_dump()))
        (folder / "recipe.yaml").write_text(shown.dump_yaml(), encoding="utf-8")
        stats, checked = (read_if_there(folder / name) for name in ("data_stats.json", "decontamination.json"))
        # Without text of the sources: whether it may be shown is for who publishes the documents to say.
        (folder / "data_card.md").write_text(render_data_card(shown, stats, checked, samples=None), encoding="utf-8")
        write_card(shown, folder)
        refuse_secrets(folder)
        check_model(folder, output_folder(recipe, "pretrain"))
        write_json(folder / "manifest.json", {"format": 1, "files": describe_files(folder)})
    return output_folder(recipe, "publish")


def read_if_there(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def relink(page: str, names: dict[Path, str], run: Path) -> str:
    """Let the links of a run's report lead to the files of the release; those to other files become text."""

    def renamed(found: re.Match) -> str:
        name = names.get(run / found[1])
        return f'<a href="{name}">{found[2]}</a>' if name else found[2]

    return re.sub(r'<a href="([\w./]+)">(.*?)</a>', renamed, page)


def describe_files(folder: Path) -> dict[str, dict]:
    """Return bytes and sha256 of every file of a release but its two lists of files, by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
        if name not in ("manifest.json", RECORD)
    }


def home_folder() -> str | None:
    """Return the home folder, or None where it is the root, whose path gives nothing away."""
    home = str(Path.home())
    return None if home == "/" else home


def relative_paths(text: str) -> str:
    """Make paths below the home folder or the current one relative to the current one, as a recipe's paths are."""
    roots = [re.escape(root) for root in (home_folder(), os.getcwd()) if root not in (None, "/")]
    if not roots:
        return text
    path = rf"(?<![\w.])(?:{'|'.join(roots)})(?![\w-])[^\s\"'<>:,;]*"
    return re.sub(path, lambda found: os.path.relpath(found[0]), text)


def without_home(value: object, key: str = "") -> object:
    """Return a recipe's values with relative paths.

    Raises: RecipeError: a path that shows the home folder even then.
    """
    if isinstance(value, dict):
        return {name: without_home(part, f"{key}.{name}".strip(".")) for name, part in value.items()}
    if isinstance(value, list):
        return [without_home(part, f"{key}.{index}") for index, part in enumerate(value)]
    if not isinstance(value, str):
        return value
    shown = relative_paths(value)
    if shown != value and home_folder() and home_folder().strip("/") in shown:
        raise RecipeError(
            f"{key}={value!r} lies below your home folder, which a published recipe would show: start the command in "
            "a folder below it, or move what it names and set the new path"
        )
    return shown


def refuse_secrets(folder: Path) -> None:
    """Search every byte of a release. Raises: RecipeError: naming files and kinds, never what was found."""
    patterns = dict(SECRETS)
    if home := home_folder():
        # A name of one part, such as /root, may well stand alone in a tokenizer's vocabulary.
        follows = rb"(?![\w-])" if home.count("/") > 1 else rb"/"
        patterns["the path of your home folder"] = re.compile(rb"(?<!\w)" + re.escape(home.encode()) + follows)
    problems = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for kind, pattern in patterns.items():
                if found := pattern.search(content):
                    name = path.relative_to(folder)
                    problems.append(f"{name}, byte {found.start()}: looks like {kind}; take it out of the run's files")
                del found  # it holds on to the mapping
    if problems:
        raise RecipeError(*problems)


@torch.no_grad()
def check_model(release: Path, original: Path) -> None:
    """Load model and tokenizer from the release and compare: all tensors, the parameter count, logits, a few tokens.

    Raises: RecipeError: saying what differs.
    """
    logits = []
    for folder in (original, release):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        inputs = tokenizer("It is so.", return_tensors="pt")
        model, loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        wrong = "; ".join(f"{kind}: {sorted(map(str, found))}" for kind, found in loaded.items() if found)
        if wrong:
            raise RecipeError(f"{original} does not load as it was saved: {wrong}; run pretrain again")
        logits.append(model.eval()(inputs["input_ids"]).logits)
        count = sum(parameter.numel() for parameter in model.parameters())
        output = model.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
        del model  # there may not be room for two
    expected = json.loads((release / "training.json").read_text(encoding="utf-8"))["parameters"]["total"]
    if count != expected:
        raise RecipeError(
            f"{original} has {count:,} parameters, not the {expected:,} of training.json; pretrain again"
        )
    if not torch.equal(*logits):
        raise RecipeError(f"{original}: the copy's logits differ, or are not numbers; evaluate the model before")
    if output.shape[1] <= inputs["input_ids"].shape[1]:
        raise RecipeError(f"{original} generates nothing")


def upload(recipe: Recipe, release: Path) -> tuple[dict, bool]:
    """Bring a repository of the Hub to what the release holds, in one commit, and read it back.

    Returns: publish.json's content, and whether anything had to be committed.
    Raises: RecipeError: for everything that can go wrong, with what to do.
    """
    repo_id, record = recipe.hub.repo_id, Path(recipe.run.output_dir) / "publish.json"
    manifest = json.loads((release / "manifest.json").read_text(encoding="utf-8"))
    if describe_files(release) != manifest["files"]:
        raise RecipeError(f"{release} was changed after it was checked; run again with --overwrite")
    names = [*manifest["files"], "manifest.json"]
    done = {"repo_id": repo_id, "manifest_sha256": file_sha256(release / "manifest.json")}
    with plain_errors(repo_id, release):
        if get_token() is None:
            raise RecipeError("hub.repo_id is set, but there is no Hub token: run `hf auth login`, or set HF_TOKEN")
        set_client_factory(bounded_client)
        api = HfApi()
        done["url"] = str(api.create_repo(repo_id, private=recipe.hub.private, exist_ok=True))
        head = api.model_info(repo_id).sha
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
        if before == {**done, "commit": head}:
            return before, False
        remote = list_files(api, repo_id, head).keys()
        if remote - {"README.md"} and "manifest.json" not in remote:
            raise RecipeError(
                f"hub.repo_id={repo_id} holds files that this command did not publish and would delete "
                f"({', '.join(sorted(remote)[:5])}); set another name, or empty that repository first"
            )
        operations = [CommitOperationAdd(name, release / name) for name in names]
        operations += [CommitOperationDelete(name) for name in sorted(remote - set(names))]
        commit = api.create_commit(repo_id, operations, commit_message="Publish the release", parent_commit=head)
        remote = list_files(api, repo_id, commit.oid)
    wrong = {name for name in names if name not in remote or not is_same_file(release / name, remote[name])}
    wrong |= remote.keys() - set(names)
    if wrong:
        raise RecipeError(f"{done['url']} does not hold what was uploaded: {', '.join(sorted(wrong))}; run again")
    done["commit"] = commit.oid
    write_json(record, done)
    return done, True


def list_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, revision=revision, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != KEPT_REMOTE}


def is_same_file(path: Path, entry: RepoFile) -> bool:
    """Compare size and content with what the Hub lists: the sha256 of an LFS file, git's sha1 of any other."""
    size = path.stat().st_size
    if entry.lfs is not None:
        return (entry.size, entry.lfs.sha256) == (size, file_sha256(path))
    return (entry.size, entry.blob_id) == (size, hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest())


def bounded_client() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = REQUEST_TIMEOUT_SECONDS
    return client


@contextmanager
def plain_errors(repo_id: str, release: Path) -> Iterator[None]:
    """Turn what the Hub and its client raise into one message with what to do."""
    try:
        yield
    except RecipeError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        # An upload that fails is a RuntimeError about the file, raised from the one that says why.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        response = getattr(cause, "response", None)
        if response is not None:
            status = response.status_code
            what = f"the Hub answered {status} ({getattr(cause, 'server_message', None) or response.reason_phrase})"
            remedy = REMEDIES.get(status, "the trouble may be the Hub's: see https://status.huggingface.co")
        elif isinstance(cause, (httpx2.TransportError, OfflineModeIsEnabled)):
            what = f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__}: {cause})"
            remedy = "check the connection, the proxy, HF_ENDPOINT and HF_HUB_OFFLINE"
        else:
            what, remedy = f"{type(cause).__name__}: {cause}", "nothing more is known about it"
        raise RecipeError(
            f"hub.repo_id={repo_id}: {what}; {remedy}. Then run the same command again: {release} is kept"
        ) from error


def publish(recipe: Recipe, dry_run: bool = False, overwrite: bool = False) -> tuple[Path, dict | None, bool]:
    """Run the stage.

    Returns: the release folder; publish.json's content, None where nothing was to be uploaded; whether it was anew.
    """
    if overwrite or not is_finished(recipe, "publish"):
        build_release(recipe)
    release = output_folder(recipe, "publish")
    if dry_run or recipe.hub.repo_id is None:
        return release, None, False
    return release, *upload(recipe, release)


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    release, published, is_new = publish(recipe, options.dry_run, options.overwrite)
    size_bytes = sum(path.stat().st_size for path in release.rglob("*") if path.name != RECORD and path.is_file())
    what = f"{release} ({size_bytes / 1e6:.1f} MB), card {release / 'README.md'}"
    if published is None:
        repo_id = [] if recipe.hub.repo_id else [f"--hub.repo_id=YOUR_NAME/{release.resolve().parent.name}"]
        command = ["python", "recipes/push_to_hub.py", "--config", *options.config, *options.overrides, *repo_id]
        print(f"publish: {what}; nothing was uploaded, to do so: {shlex.join(command)}")
    elif is_new:
        print(f"publish: {what}, published as commit {published['commit'][:12]} of {published['url']}")
    else:
        print(f"publish: nothing to do, {what} is what {published['url']} holds")


if __name__ == "__main__":
    run_command(main)
