# SPDX-License-Identifier: Apache-2.0
"""Make a Hub repository equal to a folder, in one commit that is read back, or report why that fails.

In:   folders with a manifest.json, which push_to_hub.py writes, and a token of `hf auth login` or HF_TOKEN.
Out:  repositories with the same files, and a record of what was published, from which a second try continues.

`run_transfer` starts `main` in a separate process and writes one task to its standard input, as a line of JSON. So a
transfer ends at its deadline even if it hangs: huggingface_hub waits for ever for an answer, obeys
`Retry-After: 86400`, and repeats a 409 without a pause. The process imports no torch and ends when its parent ends.

Xet, the Hub's chunked storage, is used where it is installed. HF_HUB_DISABLE_XET=1 turns it off.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    set_client_factory,
)
from huggingface_hub.errors import FileMetadataError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory

from atomic_files import CHECKSUM, file_sha256, is_unchanged, read_json, with_checksum, write_json


KEPT_REMOTE = ".gitattributes"  # the Hub writes it
READ_BACK = ("manifest.json", "config.json", "README.md")  # downloaded; for other files the Hub's hashes are compared
KNOWN_STATES = 4  # of a repository that the record keeps as this run's own
GRACE_SECONDS = 30.0  # after the deadline, for the process to report what it waits for
SLOWEST_BYTES_PER_SECOND = 1e6  # an upload gets its bytes' time at this speed, and SPARE_SECONDS
SPARE_SECONDS = 900.0
# By status of the Hub's answer: the remedy, and whether a retry may get another answer.
REMEDIES = {
    400: (
        "the Hub does not take what was sent, for the reason it gave: often the front matter of the card",
        False,
    ),
    401: (
        "the token is wrong or has expired: make one with write access at https://huggingface.co/settings/tokens and "
        "run: hf auth login",
        False,
    ),
    402: ("the account's storage or plan does not allow it: see https://huggingface.co/settings/billing", False),
    403: (
        "the token may not write there, or the storage is used up: use a token with write access to it, or set "
        "hub.repo_id to a name of your own",
        False,
    ),
    404: ("there is no such repository, or the token may not see it: check hub.repo_id and the token", False),
    408: ("the Hub waited too long for the request; check the connection", True),
    409: ("another operation on the repository or the account is in progress; wait until it is done", True),
    410: ("the repository was deleted or disabled: check hub.repo_id", False),
    412: ("someone else committed meanwhile: look at what changed there first", True),
    413: ("a file is too large for the Hub: lower hub.max_shard_size", False),
    422: ("the Hub does not take these names or values: check hub.repo_id and the card", False),
    429: ("the Hub limits requests by account and by address; wait, then run again", True),
    451: ("the repository is not available for legal reasons", False),
}
OTHER_REMEDY = ("the Hub may have a fault: see https://status.huggingface.co", True)
LATER = "wait, then run again; see https://status.huggingface.co"


@dataclass(frozen=True)
class Limits:
    """Time limits.

    Attributes:
        request_seconds: longest wait for an answer or the next byte of it.
        wait_seconds: longest pause between two tries, or that the Hub may ask for.
        first_wait_seconds: pause before the second try; doubled before each further one.
        tries: of a task. Each first looks at what the repository holds.
        total_seconds: for a task with all its tries; None: as long as its bytes take.
    """

    request_seconds: float = 60.0
    wait_seconds: float = 60.0
    first_wait_seconds: float = 2.0
    tries: int = 5
    total_seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """One repository, or a branch of it, to make equal to a folder.

    Attributes:
        folder: its files; manifest.json lists the others.
        repo_id: user-or-org/name.
        record: JSON file of what this run published, by key; a repository that holds anything else is not ours.
        key: of this job in the record.
        repo_type: model or dataset.
        revision: the branch; any but main is created if it is missing.
        private: whether the repository stays private. It is created private and opened when everything is uploaded.
        replace: whether to replace other people's commits.
        message: of the commit.
    """

    folder: str
    repo_id: str
    record: str
    key: str = "model"
    repo_type: str = "model"
    revision: str = "main"
    private: bool = True
    replace: bool = False
    message: str = "Publish the release"


class TransferError(Exception):
    """A job or one try of it failed.

    Args:
        what: went wrong.
        remedy: what the user can do.
        may_pass: whether another try may succeed.
        unreachable: whether the Hub could not be reached.
    """

    def __init__(self, what: str, remedy: str, may_pass: bool = False, unreachable: bool = False):
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy, self.may_pass, self.unreachable = what, remedy, may_pass, unreachable


# The calling process


def run_transfer(task: str, jobs: list[Job], limits: Limits | None = None) -> dict:
    """Carry out "publish" or "check" for jobs in a separate process.

    Returns: {"done": [what `publish` returned for each job]}. If a job failed, also {"failed": message,
        "unreachable": bool}; later jobs were not tried.
    """
    limits = limits or Limits()
    total_seconds = limits.total_seconds or sum(time_for(job) for job in jobs if task == "publish") + SPARE_SECONDS
    limits = Limits(**asdict(limits) | {"total_seconds": total_seconds})
    line = json.dumps({"task": task, "jobs": [asdict(job) for job in jobs], "limits": asdict(limits)})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    recipes = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {recipes!r}); from publishing.hub_transfer import main; main()"
    with subprocess.Popen([sys.executable, "-P", "-c", code], **pipes) as process:
        timer = threading.Timer(total_seconds + GRACE_SECONDS, process.kill)
        timer.start()
        process.stdin.write(f"{line}\n")
        process.stdin.flush()  # and left open: the process ends when it closes
        answers = [json.loads(answer) for answer in process.stdout if answer.endswith("}\n")]
        timer.cancel()
    result = {"done": [answer["done"] for answer in answers if "done" in answer]}
    if answers and "failed" in answers[-1]:
        return result | answers[-1]
    if len(result["done"]) < len(jobs):
        what = f"it was not done within {total_seconds:,.0f} s" if process.returncode == -9 else "the transfer died"
        result |= {"failed": f"{what}; check the connection, or set HF_HUB_DISABLE_XET=1", "unreachable": False}
    return result


def time_for(job: Job) -> float:
    """Return the seconds that the upload of a job's folder may take."""
    manifest = json.loads((Path(job.folder) / "manifest.json").read_text(encoding="utf-8"))
    return sum(file["bytes"] for file in manifest["files"].values()) / SLOWEST_BYTES_PER_SECOND


# The separate process


def main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    limits, jobs = Limits(**request["limits"]), [Job(**job) for job in request["jobs"]]
    deadline = time.monotonic() + limits.total_seconds
    for job in jobs:
        try:
            done = with_retries(publish if request["task"] == "publish" else check, job, limits, deadline)
        except TransferError as error:
            answer({"failed": str(error), "unreachable": error.unreachable})
            sys.exit(1)
        answer({"done": done})


def answer(value: dict) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """End this process when the process that started it ends, since nobody would read its answer."""
    sys.stdin.read()
    os._exit(1)


def with_retries(step: Callable[[Job], dict], job: Job, limits: Limits, deadline: float) -> dict:
    """Run `publish` or `check` until it succeeds, cannot succeed, or the time is over. Raises: TransferError."""
    set_client_factory(lambda: bounded_client(limits, deadline))
    for attempt in count(1):
        try:
            return step(job)
        except Exception as error:
            failure = explain(error)
        wait = min(limits.first_wait_seconds * 2 ** (attempt - 1), limits.wait_seconds)
        if not failure.may_pass or attempt == limits.tries or time.monotonic() + wait > deadline:
            times = f" ({attempt} times)" if attempt > 1 else ""
            key = {"tokenizer": "hub.tokenizer_repo_id", "dataset": "hub.dataset_repo_id"}.get(job.key, "hub.repo_id")
            what = f"{key}={job.repo_id}: {failure.what}{times}"
            raise TransferError(what, failure.remedy, unreachable=failure.unreachable)
        sys.stderr.write(f"publish: {job.repo_id}: {failure.what}; trying again in {wait:g} s\n")
        time.sleep(wait)


def bounded_client(limits: Limits, deadline: float) -> httpx2.Client:
    """Return huggingface_hub's client with limits on each request, on all of them, and on the Hub's pauses."""
    client = default_client_factory()
    conflicts = count()

    def before(request: httpx2.Request) -> None:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TransferError(f"it was not done within {limits.total_seconds:,.0f} s", LATER)
        # Not by the client's own timeout, which huggingface_hub overrides with None where it looks at a repository.
        request.extensions["timeout"] = httpx2.Timeout(min(limits.request_seconds, left_seconds)).as_dict()

    def after(response: httpx2.Response) -> None:
        asked = [int(number) for number in re.findall(r"^\s*(\d+)\s*$", response.headers.get("Retry-After", ""))]
        asked += [int(number) for number in re.findall(r"r=0;\s*t=(\d+)", response.headers.get("ratelimit", ""))]
        if response.status_code >= 400 and max(asked, default=0) > limits.wait_seconds:
            raise TransferError(f"the Hub answered {response.status_code} and asks to wait {max(asked):,} s", LATER)
        if response.status_code == 409 and is_repeated(response):
            number = next(conflicts)
            if number >= limits.tries:
                conflict = " ".join(response.text.split())[:100]
                raise TransferError(f"the Hub answered 409 ({conflict}) {number} times", LATER)
            time.sleep(min(limits.first_wait_seconds * 2**number, limits.wait_seconds))

    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
    return client


def is_repeated(response: httpx2.Response) -> bool:
    """Return whether huggingface_hub repeats a request after this 409 for ever, as `create_repo` does."""
    response.read()
    return "conflicting operation" in response.text


def explain(error: BaseException) -> TransferError:
    """Return any error as a TransferError, with what went wrong and what to do."""
    chain = []
    while error is not None and error not in chain:  # a failed upload raises an error about the file, from another
        chain.append(error)
        error = error.__cause__ or error.__context__
    for error in chain:
        response = getattr(error, "response", None)
        if isinstance(error, TransferError):
            return error
        if isinstance(error, HFValidationError):
            return TransferError(str(error), "choose another name")
        if isinstance(error, OfflineModeIsEnabled):
            remedy = "unset HF_HUB_OFFLINE on a machine with a network"
            return TransferError("HF_HUB_OFFLINE is set, so the Hub is not contacted", remedy, unreachable=True)
        if response is not None:
            remedy, may_pass = REMEDIES.get(response.status_code, OTHER_REMEDY)
            reason = getattr(error, "server_message", None) or response.reason_phrase
            what = f"the Hub answered {response.status_code} ({' '.join(str(reason).split())[:300]})"
            return TransferError(what, remedy, may_pass, unreachable=response.status_code >= 500)
        if isinstance(error, httpx2.TransportError):
            what = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error})"
            return TransferError(what, "check the connection, the proxy, and HF_ENDPOINT", True, unreachable=True)
    error = chain[0]
    for kind, lacking in {json.JSONDecodeError: "JSON", FileMetadataError: "a file of a repository"}.items():
        if any(isinstance(error, kind) for error in chain):
            what = f"{constants.ENDPOINT} answered something that is not {lacking}"
            remedy = "a proxy or a login page may have answered in its place: open it in a browser"
            return TransferError(what, remedy, True, unreachable=True)
    if isinstance(error, FileNotFoundError) and error.filename:  # those of huggingface_hub name none
        return TransferError(f"{error.filename}: {error.strerror}", "run again with --overwrite to rebuild it")
    what = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    if "xet" in what.lower() or "xet" in type(error).__module__.lower():
        return TransferError(what, "set HF_HUB_DISABLE_XET=1 to upload without Xet")
    return TransferError(f"the Hub's answer was not understood ({what})", "look for a newer huggingface_hub", True)


# Repositories


def check(job: Job) -> dict:
    """Check that a job could be done later: the token, its role, the name, and what the repository holds now.

    A missing repository is created, private and empty, so that nobody else takes the name.
    """
    if get_token() is None:
        raise TransferError("there is no Hub token", "run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    who = api.whoami()
    refuse_role(who, job.repo_id)
    url, _, head = open_repository(api, job)
    refuse_foreign(job, head, list_files(api, job, head), read_record(job))
    return {"repo_id": job.repo_id, "url": url, "user": who["name"]}


def refuse_role(who: dict, repo_id: str) -> None:
    """Refuse a token that is known not to write to the repository's owner; the Hub refuses the others."""
    owner, token = repo_id.split("/")[0], who.get("auth", {}).get("accessToken", {})
    settings = "https://huggingface.co/settings/tokens"
    if token.get("role") == "read":
        raise TransferError(f"the token of {who['name']} can only read", f"make one that can write at {settings}")
    if owner not in {who["name"], *(org.get("name") for org in who.get("orgs", []))}:
        raise TransferError(f"{who['name']} is not a member of {owner}", f"name a repository {who['name']}/...")
    scoped = token.get("fineGrained", {}).get("scoped")
    if token.get("role") == "fineGrained" and scoped is not None:
        owned = [scope for scope in scoped if str(scope.get("entity", {}).get("name", "")).split("/")[0] == owner]
        if not any("repo.write" in scope.get("permissions", []) for scope in owned):
            what = f"the fine-grained token may not write to repositories of {owner}"
            raise TransferError(what, f"allow it at {settings}")


def publish(job: Job) -> dict:
    """Do a job, from the state in which an earlier try left it.

    Returns: repo_id, repo_type, url, commit, tag (of main), private, manifest_sha256, and is_new: whether this try
        committed something, or an earlier one that could not record it.
    """
    if get_token() is None:
        raise TransferError("there is no Hub token", "run `hf auth login`, or set HF_TOKEN")
    folder, api, record = Path(job.folder), HfApi(), read_record(job)
    wanted = describe_folder(folder)
    url, is_private, head = open_repository(api, job)
    tree = list_files(api, job, head)
    if find_differences(wanted, tree):
        refuse_foreign(job, head, tree, record)
        size_bytes = sum(file["bytes"] for file in wanted.values())
        sys.stderr.write(f"publish: {len(wanted)} files, {size_bytes / 1e6:.1f} MB, go to {url}\n")
        # Recorded before the commit, so that a run killed after it knows the commit as its own.
        known = [state for state in record.get("known", []) if state != wanted]
        record = write_record(job, record | {"known": [*known, wanted][-KNOWN_STATES:]})
        operations = [CommitOperationAdd(name, folder / name) for name in sorted(wanted)]
        operations += [CommitOperationDelete(name) for name in sorted(tree.keys() - wanted.keys())]
        commit = api.create_commit(
            job.repo_id,
            operations,
            commit_message=job.message,
            repo_type=job.repo_type,
            revision=job.revision,
            parent_commit=head,
        )
        head = commit.oid
        tree = list_files(api, job, head)
        if wrong := find_differences(wanted, tree):
            raise ValueError(f"{url} does not hold what was uploaded: {', '.join(wrong)}")
    read_back(job, head, wanted)
    done = {"repo_id": job.repo_id, "repo_type": job.repo_type, "url": url, "revision": job.revision, "commit": head}
    done |= {"manifest_sha256": wanted["manifest.json"]["sha256"]}
    if job.revision == "main":
        done["tag"] = tag_commit(api, job, head)
        if is_private and not job.private:
            api.update_repo_settings(job.repo_id, private=False, repo_type=job.repo_type)
    done["private"] = job.private
    is_new = {name: record.get(name) for name in done} != done
    if is_new:
        write_record(job, record | done | {"known": [wanted]})
    return done | {"is_new": is_new}


def read_record(job: Job) -> dict:
    """Return the record of a job's repository; empty if the record is of another one."""
    record = read_records(Path(job.record)).get(job.key, {})
    return record if record.get("repo_id") == job.repo_id else {}


def write_record(job: Job, record: dict) -> dict:
    path = Path(job.record)
    write_json(path, with_checksum(read_records(path) | {job.key: {"repo_id": job.repo_id} | record}))
    return record


def read_records(path: Path) -> dict[str, dict]:
    """Return the records of all jobs, {key: record}, and their checksum; empty where there is no file.

    Raises: TransferError: the file is not as it was written; earlier versions wrote no checksum.
    """
    records = read_json(path) if path.exists() else {}
    jobs = [record for key, record in (records or {}).items() if key != CHECKSUM]
    if records is None or not is_unchanged(records) or not all(isinstance(record, dict) for record in jobs):
        raise TransferError(
            f"{path} is not as it was written",
            "restore it from a copy, or delete it and run again with --overwrite, which replaces what the Hub holds",
        )
    return records


def open_repository(api: HfApi, job: Job) -> tuple[str, bool, str]:
    """Create the repository and the branch if they are missing.

    Returns: its address, whether it is private, and the head commit of the branch.
    Raises: TransferError: it is public and should not be.
    """
    url = str(api.create_repo(job.repo_id, repo_type=job.repo_type, private=True, exist_ok=True))
    info = api.repo_info(job.repo_id, repo_type=job.repo_type)
    if job.private and not info.private:
        raise TransferError(f"{url} is public, but hub.private is true", "set hub.private=false, or make it private")
    if job.revision == "main":
        return url, info.private, info.sha
    branches = api.list_repo_refs(job.repo_id, repo_type=job.repo_type).branches
    if job.revision not in {branch.name for branch in branches}:
        api.create_branch(job.repo_id, branch=job.revision, repo_type=job.repo_type, exist_ok=True)
    return url, info.private, api.repo_info(job.repo_id, repo_type=job.repo_type, revision=job.revision).sha


def refuse_foreign(job: Job, head: str, tree: dict[str, RepoFile], record: dict) -> None:
    """Refuse to change what someone else committed to main. (A new branch starts with main's files.)"""
    if job.replace or job.revision != "main" or not tree:
        return
    if [*tree] == ["README.md"] and is_blank_card(job, head):
        return
    if any(not find_differences(state, tree) for state in record.get("known", [])):
        return
    since = f" since commit {record['commit'][:12]}" if "commit" in record else ""
    files = ", ".join(sorted(tree)[:5]) + (", ..." if len(tree) > 5 else "")
    raise TransferError(
        f"it holds what this run did not publish, someone else's commit {head[:12]}{since} ({files})",
        "look at it there, and run again with --overwrite to replace it",
    )


def is_blank_card(job: Job, head: str) -> bool:
    """Return whether a README has a front matter alone, as the Hub writes it for a new repository with a licence."""
    with tempfile.TemporaryDirectory() as cache:
        place = {"repo_type": job.repo_type, "revision": head, "cache_dir": cache}
        text = Path(hf_hub_download(job.repo_id, "README.md", **place)).read_text(encoding="utf-8", errors="replace")
    return not re.sub(r"\A---\n.*?\n---(\n|\Z)", "", text, flags=re.DOTALL).strip()


def describe_folder(folder: Path) -> dict[str, dict]:
    """Return size, sha256 and git's sha1 of a folder's files, by name: the Hub lists one of the two hashes.

    Raises: FileNotFoundError: the folder differs from its manifest.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if there - {"stage.json"} != {*manifest, "manifest.json"} or any(path.is_symlink() for path in folder.rglob("*")):
        raise FileNotFoundError(2, "not the files of its manifest", str(folder))
    described = {}
    for name in [*manifest, "manifest.json"]:
        size, sha256 = (folder / name).stat().st_size, file_sha256(folder / name)
        described[name] = {"bytes": size, "sha256": sha256, "sha1": git_sha1(folder / name)}
        if name in manifest and manifest[name] != {"bytes": size, "sha256": sha256}:
            raise FileNotFoundError(2, "changed after it was checked", str(folder / name))
    return described


def git_sha1(path: Path) -> str:
    """Return git's name of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def list_files(api: HfApi, job: Job, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(job.repo_id, repo_type=job.repo_type, revision=revision, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != KEPT_REMOTE}


def find_differences(wanted: dict[str, dict], tree: dict[str, RepoFile]) -> list[str]:
    """Return the names of files that are missing, left over, or differ, by the Hub's list."""
    return sorted(
        name
        for name in wanted.keys() | tree.keys()
        if name not in wanted or name not in tree or not is_same_file(wanted[name], tree[name])
    )


def is_same_file(file: dict, entry: RepoFile) -> bool:
    """Compare size and hash with the Hub's list: the sha256 of an LFS file, git's sha1 of any other."""
    if entry.lfs is not None:
        return (entry.size, entry.lfs.sha256) == (file["bytes"], file["sha256"])
    return (entry.size, entry.blob_id) == (file["bytes"], file["sha1"])


def read_back(job: Job, commit: str, wanted: dict[str, dict]) -> None:
    """Download small files as a reader would, and compare. Raises: ValueError: one differs from what was uploaded."""
    with tempfile.TemporaryDirectory() as cache:
        for name in READ_BACK:
            if name in wanted:
                place = {"repo_type": job.repo_type, "revision": commit, "cache_dir": cache}
                if file_sha256(Path(hf_hub_download(job.repo_id, name, **place))) != wanted[name]["sha256"]:
                    raise ValueError(f"{name} reads back differently from what was uploaded")


def tag_commit(api: HfApi, job: Job, commit: str) -> str:
    """Return a commit's version tag, v1, v2 and so on; tag it first if it has none."""
    refs = api.list_repo_refs(job.repo_id, repo_type=job.repo_type).tags
    versions = {int(ref.name[1:]): ref.target_commit for ref in refs if re.fullmatch(r"v\d+", ref.name)}
    for number, target in versions.items():
        if target == commit:
            return f"v{number}"
    tag = f"v{max(versions, default=0) + 1}"
    api.create_tag(job.repo_id, tag=tag, revision=commit, repo_type=job.repo_type)
    return tag


if __name__ == "__main__":
    main()
