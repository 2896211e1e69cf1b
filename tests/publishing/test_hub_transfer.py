# SPDX-License-Identifier: Apache-2.0
"""Publishing over HTTP when the Hub, the network or the machine fails: what reaches the Hub, and what does not.

Each case below is a sentence that must hold. It runs in a process of its own, with the real client against
mini_hub.py. Its token separates its faults from those of other cases, so that cases run at the same time.

    pytest tests/publishing/test_hub_transfer.py          and with --all a kill before and after every single request
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from mini_hub import ask_hub, hub_environment, start_hub

from publishing import hub_transfer
from publishing.hub_transfer import Job, Limits, TransferError, run_transfer


# Long enough for a busy machine; a case that tests a limit sets it.
QUICK = Limits(request_seconds=20.0, wait_seconds=0.2, first_wait_seconds=0.02, tries=3, total_seconds=90.0)
CASES: list[Callable] = []
LONG_CASES: list[Callable] = []
AT_ONCE = 8  # cases; most of them wait


def write_release(folder: Path, seed: str, files: int = 3) -> None:
    """Write a folder with a manifest: a card, a config, weights, which go through LFS, and some small files."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"README.md": f"---\nlicense: mit\n---\n# {seed}\n", "config.json": json.dumps({"seed": seed})}
    contents |= {f"notes/{index}.md": f"{seed} {index}\n" for index in range(files - 1)}
    contents |= {"notes/empty.md": "", "model.safetensors": seed * 1000, "model-2.safetensors": f"{seed}2" * 1000}
    listed = {}
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        listed[name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": listed}))


@dataclass
class Case:
    """One case: a folder of its own, a repository me/<name> of its own, and its view of the mock Hub."""

    name: str
    folder: Path

    def job(self, **changes: object) -> Job:
        job = Job(str(self.folder / "release"), f"me/{self.name}", str(self.folder / "publish.json"))
        return replace(job, **changes)

    def write(self, seed: str = "", files: int = 3) -> None:
        write_release(self.folder / "release", f"{self.name} {seed}", files)

    def fault(self, match: str, **fault: object) -> None:
        # The upload of a file has no token, but names the repository.
        ask_hub("/_faults?add", [{"match": f"{match}.*(hf_{self.name}|me/{self.name})$", **fault}])

    def publish(self, limits: Limits = QUICK, step: Callable = hub_transfer.publish, **changes: object) -> dict:
        return hub_transfer.with_retries(step, self.job(**changes), limits, time.monotonic() + limits.total_seconds)

    def fails(self, pattern: str, **options: object) -> str:
        try:
            done = self.publish(**options)
        except TransferError as error:
            assert re.search(pattern, str(error)), str(error)
            assert str(error).startswith(f"hub.repo_id=me/{self.name}: "), str(error)
            assert "hf_" not in str(error).replace("hf_xet", ""), str(error)
            return str(error)
        raise AssertionError(f"it was published: {done}")

    def repository(self, kind: str = "models") -> dict:
        return ask_hub("/_state")["repositories"].get(f"{kind}/me/{self.name}")

    def commits(self) -> list[str]:
        return [commit["message"] for commit in self.repository()["commits"]]

    def record(self) -> dict:
        return json.loads((self.folder / "publish.json").read_text())["model"]

    def requests(self) -> list[str]:
        return [entry["request"] for entry in ask_hub("/_state")["log"] if f"me/{self.name}" in entry["request"]]

    def holds_release(self) -> None:
        """Check that main holds the release, whole, in one commit since the repository was made, and tagged."""
        repository, manifest = self.repository(), json.loads((self.folder / "release" / "manifest.json").read_text())
        sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
        sizes["manifest.json"] = (self.folder / "release" / "manifest.json").stat().st_size
        assert repository["files"] == sizes
        assert self.commits() == ["initial commit", "Publish the release"]
        assert repository["refs"]["v1"] == repository["head"] == self.record()["commit"]

    def holds_nothing(self) -> None:
        assert self.repository() is None or self.commits() == ["initial commit"]
        assert not (self.folder / "publish.json").exists() or "commit" not in self.record()


def case(function: Callable) -> Callable:
    CASES.append(function)
    return function


def long_case(function: Callable) -> Callable:
    LONG_CASES.append(function)
    return function


# --- what it is like when nothing fails


@case
def a_release_is_one_commit_that_is_tagged_and_recorded(hub: Case) -> None:
    hub.write()
    done = hub.publish()
    hub.holds_release()
    assert hub.repository()["private"] and done["is_new"] and done["tag"] == "v1"
    assert done["commit"] == hub.record()["commit"]


@case
def publishing_it_again_sends_nothing(hub: Case) -> None:
    hub.write()
    hub.publish()
    before, requests = hub.record(), len(hub.requests())
    assert not hub.publish()["is_new"]
    hub.holds_release()
    assert hub.record() == before
    assert not [
        request for request in hub.requests()[requests:] if re.match("PUT|POST .*(commit|tag|preupload)", request)
    ]


@case
def a_new_release_replaces_the_old_one_whole_and_is_the_next_version(hub: Case) -> None:
    hub.write("old", files=5)
    hub.publish()
    for path in (hub.folder / "release" / "notes").iterdir():
        path.unlink()
    hub.write("new", files=2)
    assert hub.publish()["tag"] == "v2"
    assert hub.commits() == ["initial commit", "Publish the release", "Publish the release"]
    names = json.loads((hub.folder / "release" / "manifest.json").read_text())["files"].keys()
    assert hub.repository()["files"].keys() == {*names, "manifest.json"}


@case
def a_repository_becomes_public_only_when_everything_is_uploaded(hub: Case) -> None:
    hub.write()
    hub.fault("PUT /api/models/.*/settings", status=500, times=QUICK.tries)
    hub.fails("the Hub answered 500", private=False)
    assert hub.repository()["private"] and hub.repository()["refs"]["v1"] == hub.repository()["head"]
    hub.publish(private=False)
    assert not hub.repository()["private"]
    hub.holds_release()


@case
def six_hundred_files_are_one_commit(hub: Case) -> None:
    hub.write(files=600)
    hub.publish()
    hub.holds_release()
    assert len(hub.repository()["files"]) == 605


@case
def a_dataset_repository_is_published_in_the_same_way(hub: Case) -> None:
    hub.write()
    hub.publish(repo_type="dataset")
    assert len(hub.repository("datasets")["files"]) == 8 and hub.repository("datasets")["refs"]["v1"]


@case
def a_revision_is_a_branch_of_its_own_and_main_stays_as_it_is(hub: Case) -> None:
    hub.write()
    hub.publish()
    head = hub.repository()["head"]
    write_release(hub.folder / "step", f"{hub.name} step", files=1)
    hub.publish(folder=str(hub.folder / "step"), revision="step-0000100", key="step-0000100")
    repository = hub.repository()
    assert repository["head"] == head and repository["refs"]["step-0000100"] not in (head, None)
    assert "v2" not in repository["refs"]


# --- H1: tokens and names


@case
def without_a_token_nothing_is_requested(hub: Case) -> None:
    hub.write()
    del os.environ["HF_TOKEN"]
    hub.fails("there is no Hub token; run `hf auth login`, or set HF_TOKEN", step=hub_transfer.check)
    hub.fails("there is no Hub token")
    assert hub.repository() is None


@case
def a_wrong_token_is_reported_before_anything_is_created(hub: Case) -> None:
    hub.fault("GET /api/whoami", status=401)
    hub.fails("the Hub answered 401 .*the token is wrong or has expired.*hf auth login", step=hub_transfer.check)
    assert hub.repository() is None


@case
def a_token_that_only_reads_is_reported_before_anything_is_created(hub: Case) -> None:
    hub.fault("GET /api/whoami", status=200, answer={"name": "me", "auth": {"accessToken": {"role": "read"}}})
    hub.fails("the token of me can only read", step=hub_transfer.check)
    assert hub.repository() is None


@case
def a_fine_grained_token_of_other_repositories_is_reported(hub: Case) -> None:
    scoped = [{"entity": {"name": "elsewhere"}, "permissions": ["repo.write"]}]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scoped}}
    hub.fault("GET /api/whoami", status=200, answer={"name": "me", "auth": {"accessToken": token}})
    hub.fails("the fine-grained token may not write to repositories of me", step=hub_transfer.check)
    scoped[0]["entity"]["name"] = "me"
    hub.fault("GET /api/whoami", status=200, answer={"name": "me", "auth": {"accessToken": token}})
    assert hub.publish(step=hub_transfer.check)["user"] == "me"


@case
def the_name_of_someone_else_is_reported(hub: Case) -> None:
    hub.fault("GET /api/whoami", status=200, answer={"name": "someone", "orgs": [{"name": "team"}]})
    hub.fails("someone is not a member of me", step=hub_transfer.check)


@case
def the_check_before_training_takes_the_name_and_a_second_one_finds_it_taken(hub: Case) -> None:
    hub.write()
    assert hub.publish(step=hub_transfer.check) == hub.publish(step=hub_transfer.check)
    assert hub.repository()["private"] and hub.commits() == ["initial commit"]
    hub.publish()
    hub.publish(step=hub_transfer.check)
    hub.holds_release()


@case
def a_name_that_no_repository_can_have_is_reported(hub: Case) -> None:
    hub.write()
    try:
        hub.publish(repo_id="me/bad--name")
    except TransferError as error:
        assert "choose another name" in str(error), str(error)
    else:
        raise AssertionError


# --- H2: conflicts


@case
def a_conflict_that_never_ends_is_given_up(hub: Case) -> None:
    text = "Cannot create repo: another conflicting operation is in progress"
    hub.write()
    hub.fault("POST /api/repos/create", status=409, answer={"error": text}, times=1000)
    hub.fails(f"the Hub answered 409 .*{text}.* 3 times")
    assert hub.repository() is None


@case
def a_conflict_that_ends_is_waited_for(hub: Case) -> None:
    text = "Cannot create repo: another conflicting operation is in progress"
    hub.write()
    hub.fault("POST /api/repos/create", status=409, answer={"error": text}, times=2)
    hub.publish()
    hub.holds_release()


@case
def a_repository_of_someone_else_is_left_alone_without_overwrite(hub: Case) -> None:
    hub.write()
    hub.publish(record=str(hub.folder / "of another run.json"))
    hub.write("other")
    hub.fails("it holds what this run did not publish.*--overwrite", step=hub_transfer.check)
    hub.fails("it holds what this run did not publish, someone else's commit")
    assert hub.commits() == ["initial commit", "Publish the release"]
    assert hub.publish(replace=True)["tag"] == "v2"


@case
def a_public_repository_is_not_written_to_if_the_recipe_wants_a_private_one(hub: Case) -> None:
    hub.write()
    hub.publish(private=False)
    hub.write("next")
    hub.fails("is public, but hub.private is true")
    assert hub.commits() == ["initial commit", "Publish the release"]


# --- H3: rate limits


@case
def a_pause_of_a_day_is_reported_and_not_waited_for(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/preupload/", status=429, headers={"Retry-After": "86400"}, times=100)
    hub.fails("the Hub answered 429 and asks to wait 86,400 s")
    hub.holds_nothing()


@case
def a_pause_of_an_hour_in_the_newer_header_is_reported_too(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/preupload/", status=429, headers={"ratelimit": '"api";r=0;t=3600'}, times=100)
    hub.fails("the Hub answered 429 and asks to wait 3,600 s")


@case
def a_rate_limit_without_a_pause_is_tried_again(hub: Case) -> None:
    hub.write()
    hub.fault("GET /api/models/", status=429, times=2)
    hub.publish()
    hub.holds_release()


# --- H4: the Hub's own trouble, at each kind of request


def recovers_from(match: str, **fault: object) -> Callable:
    def recovers(hub: Case) -> None:
        hub.write()
        hub.fault(match, **fault)
        hub.publish()
        hub.holds_release()
        assert [left["times"] for left in ask_hub("/_state")["faults"] if hub.name in left["match"]] == [0]

    return recovers


for place, match in {
    "making_the_repository": "POST /api/repos/create",
    "looking_at_it": "GET /api/models/",
    "checking_the_card": "POST /api/validate-yaml",
    "announcing_files": "POST .*/preupload/",
    "announcing_large_files": "POST .*/objects/batch",
    "sending_a_large_file": "PUT /_lfs/",
    "committing": "POST .*/commit/",
    "reading_back": "GET .*/resolve/",
    "listing": "GET .*/tree/",
    "tagging": "POST .*/tag/",
}.items():
    for name, fault in {
        "a_500_in": {"status": 500},
        "a_503_that_is_a_page_in": {"status": 503, "answer": "<html>Service Unavailable</html>"},
        "a_dropped_connection_in": {"action": "drop"},
        "garbage_for_json_in": {"status": 200, "answer": "<html>Please log in</html>"},
    }.items():
        if place in ("reading_back", "sending_a_large_file", "tagging") and name.startswith("garbage"):
            continue  # there nothing reads the body as JSON
        function = recovers_from(match, **fault)
        function.__name__ = f"{name}_{place}_is_tried_again"
        long_case(function) if name.startswith("a_503") or place in ("looking_at_it", "listing") else case(function)


@case
def a_hub_that_only_answers_garbage_is_reported(hub: Case) -> None:
    hub.write()
    hub.fault("POST /api/validate-yaml", status=502, answer="<html>Bad Gateway</html>", times=100)
    hub.fails("answered something that is not JSON .3 times.; a proxy or a login page")
    hub.holds_nothing()


@case
def an_answer_of_another_shape_is_reported(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/preupload/", status=200, answer={"files": None}, times=100)
    hub.fails("the Hub's answer was not understood")
    hub.holds_nothing()


@case
def a_card_that_the_hub_does_not_take_is_reported_with_its_reason(hub: Case) -> None:
    hub.write()
    hub.fault("POST /api/validate-yaml", status=400, answer={"errors": [{"message": "license is odd"}]})
    hub.fails("the Hub answered 400 .*front matter of the card")
    hub.holds_nothing()


# --- H5: answers that are lost after the Hub did what was asked


for place, match in {
    "making": "POST /api/repos/create",
    "committing": "POST .*/commit/",
    "tagging": "POST .*/tag/",
}.items():
    function = recovers_from(match, action="after", status=500)
    function.__name__ = f"an_answer_that_is_lost_after_{place}_is_recognised_and_nothing_is_done_twice"
    case(function)


# --- H6: time


@case
def a_hub_that_does_not_answer_is_given_up_in_time(hub: Case) -> None:
    hub.write()
    hub.fault("GET /api/models/", action="hang", seconds=1, times=100)
    started = time.monotonic()
    hub.fails("cannot be reached .ReadTimeout.*check the connection", limits=replace(QUICK, request_seconds=0.3))
    assert time.monotonic() - started < 20
    hub.holds_nothing()


@case
def a_file_whose_sending_hangs_once_is_sent_again(hub: Case) -> None:
    hub.write()
    hub.fault("PUT /_lfs/", action="hang", seconds=4)
    hub.publish(limits=replace(QUICK, request_seconds=3.0))
    hub.holds_release()


@case
def a_transfer_that_takes_too_long_in_all_is_given_up(hub: Case) -> None:
    hub.write()
    hub.fault("PUT /_lfs/", status=500, times=1000)  # the client would wait for 23 s a file
    started = time.monotonic()
    hub.fails("it was not done within 1 s", limits=replace(QUICK, total_seconds=1.0))
    assert time.monotonic() - started < 20  # without the limit, 23 s a file and three tries
    hub.holds_nothing()


# --- H4, H7: half-way


@case
def a_403_half_way_leaves_nothing_and_names_the_remedy(hub: Case) -> None:
    hub.write()
    hub.fault("PUT /_lfs/", status=403, skip=1, times=100)
    hub.fails("the Hub answered 403 .*may not write there, or the storage is used up")
    hub.holds_nothing()


@case
def a_full_account_is_reported(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/objects/batch", status=402)
    hub.fails("the Hub answered 402 .*the account's storage or plan")
    hub.holds_nothing()


for status, remedy in {
    404: "there is no such repository",
    410: "was deleted or disabled",
    413: "lower hub.max_shard_size",
    422: "does not take these names",
    451: "not available for legal reasons",
}.items():

    def is_told(hub: Case, status: int = status, remedy: str = remedy) -> None:
        hub.write()
        hub.fault("POST .*/commit/", status=status, times=100)
        hub.fails(f"the Hub answered {status} .*{remedy}")
        hub.holds_nothing()

    is_told.__name__ = f"a_{status}_is_reported_with_what_to_do"
    case(is_told)


def kill_at(hub: Case, number: int, after: bool) -> bool:
    """Publish in a child that is killed before or after its request of a number; say whether it got so far."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        try:
            hub.publish()
        finally:
            os._exit(0)
    hub.fault(".", action="kill", pid=child, after=after, skip=number)
    os.write(go, b".")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check_killed(hub: Case, number: int, after: bool) -> bool:
    hub.write()
    killed = kill_at(hub, number, after)
    assert hub.repository() is None or set(hub.repository()["files"]) in (set(), names_of(hub)), "half a release"
    hub.publish()
    hub.holds_release()
    return killed


def names_of(hub: Case) -> set[str]:
    return {*json.loads((hub.folder / "release" / "manifest.json").read_text())["files"], "manifest.json"}


def killed_at(number: int, after: bool) -> Callable:
    def killed(hub: Case) -> None:
        check_killed(hub, number, after)

    killed.__name__ = f"killed_{'after' if after else 'before'}_request_{number}_it_goes_on"
    return killed


MAX_REQUESTS = 22  # of one release; the enumeration checks that it is enough
SAMPLE = {(0, False), (4, True), (7, False), (8, True), (9, False), (9, True), (10, True), (12, False), (14, True)}
for number in range(MAX_REQUESTS):
    for after in (False, True):
        (case if (number, after) in SAMPLE else long_case)(killed_at(number, after))


@long_case
def a_release_takes_fewer_requests_than_the_enumeration_kills_at(hub: Case) -> None:
    assert not check_killed(hub, MAX_REQUESTS - 1, after=False)


# --- H8: someone else


@case
def a_commit_made_meanwhile_is_noticed_and_kept(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/commit/", action="intrude", path="stray.txt")
    hub.fails("someone else's commit .*stray.txt")
    assert hub.commits() == ["initial commit", "another hand"] and set(hub.repository()["files"]) == {"stray.txt"}


@case
def a_commit_since_the_last_release_is_noticed_and_kept(hub: Case) -> None:
    hub.write()
    hub.publish()
    hub.fault("GET .*/tree/", action="intrude", path="stray.txt")
    hub.publish()
    hub.fails("someone else's commit .* since commit")
    assert "stray.txt" in hub.repository()["files"]
    hub.publish(replace=True)
    assert set(hub.repository()["files"]) == names_of(hub)


@case
def a_card_that_someone_wrote_is_noticed_and_kept(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/commit/", action="intrude", path="README.md", text="---\nlicense: mit\n---\n\n# Ours\n\n---\n")
    hub.fails("someone else's commit .*README.md")
    assert set(hub.repository()["files"]) == {"README.md"}


@case
def a_card_that_only_states_a_licence_is_replaced(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/commit/", action="intrude", path="README.md", text="---\nlicense: mit\n---\n")
    hub.publish()
    assert hub.commits() == ["initial commit", "another hand", "Publish the release"]
    assert set(hub.repository()["files"]) == names_of(hub)


@case
def a_412_for_no_reason_is_tried_again(hub: Case) -> None:
    hub.write()
    hub.fault("POST .*/commit/", status=412)
    hub.publish()
    hub.holds_release()


# --- H10: reading back


@case
def a_truncated_download_is_read_again(hub: Case) -> None:
    hub.write()
    hub.fault("GET .*/resolve/.*/config.json", action="cut")
    hub.publish()
    hub.holds_release()


@case
def a_login_page_in_place_of_a_file_is_reported(hub: Case) -> None:
    hub.write()
    for answer in (
        {"status": 200, "answer": "log in"},
        {"status": 302, "headers": {"Location": "http://login.invalid"}},
    ):
        hub.fault("HEAD .*/resolve/.*/config.json", **answer, times=QUICK.tries)
        hub.fails("answered something that is not a file of a repository.*a proxy or a login page may have answered")
        assert "commit" not in hub.record()
    hub.fault("HEAD .*/resolve/.*/config.json", status=302, headers={"Location": "http://login.invalid"})
    hub.publish()
    hub.holds_release()


@case
def content_that_reads_back_changed_is_reported_and_not_recorded(hub: Case) -> None:
    hub.write()
    hub.fault("GET .*/resolve/.*/config.json", action="alter", times=100)
    hub.fails("config.json reads back differently from what was uploaded")
    assert "commit" not in hub.record() and "v1" not in hub.repository()["refs"]


@case
def files_that_are_not_listed_afterwards_are_reported(hub: Case) -> None:
    hub.write()
    hub.fault("GET .*/tree/", status=200, answer=[], times=100)
    hub.fails("does not hold what was uploaded: README.md, config.json")


# --- the folder


@case
def a_folder_that_changed_since_it_was_checked_is_not_sent(hub: Case) -> None:
    hub.write()
    (hub.folder / "release" / "config.json").write_text("{}")
    hub.fails("config.json: changed after it was checked")
    hub.write()
    (hub.folder / "release" / "stray.txt").write_text("secret")
    hub.fails("not the files of its manifest")
    (hub.folder / "release" / "stray.txt").unlink()
    (hub.folder / "release" / "config.json").rename(hub.folder / "elsewhere")
    (hub.folder / "release" / "config.json").symlink_to(hub.folder / "elsewhere")
    hub.fails("not the files of its manifest")
    assert hub.repository() is None


# --- how cases are run


def run_cases(folder: str, kind: str) -> None:
    """Run the cases in children, some at once, and write {name: "passed" or what went wrong}."""
    folder, outcomes, running = Path(folder), {}, {}
    cases = {function.__name__: function for function in (CASES if kind == "quick" else LONG_CASES)}
    waiting = list(cases)
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            child = os.fork()
            if child == 0:
                run_case(cases[name], folder / name)
            running[child] = name
        child, status = os.wait()
        name = running.pop(child)
        report = folder / name / "outcome.txt"
        outcomes[name] = report.read_text() if report.exists() else f"died with {os.waitstatus_to_exitcode(status)}"
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def run_case(function: Callable, folder: Path) -> None:
    folder.mkdir()
    name = hashlib.sha256(function.__name__.encode()).hexdigest()[:12]
    os.environ["HF_TOKEN"] = f"hf_{name}"
    try:
        function(Case(name, folder))
        outcome = "passed"
    except BaseException:
        outcome = traceback.format_exc()
    (folder / "outcome.txt").write_text(outcome)
    os._exit(0)


def collect_outcomes(folder: Path, kind: str) -> dict[str, str]:
    with start_hub() as (_, endpoint):
        code = "import sys, test_hub_transfer; test_hub_transfer.run_cases(*sys.argv[1:])"
        subprocess.run(
            [sys.executable, "-c", code, str(folder), kind],
            env=hub_environment(endpoint, folder / "home"),
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return json.loads((folder / "outcomes.json").read_text())


@pytest.fixture(scope="module")
def quick_outcomes(tmp_path_factory) -> dict[str, str]:
    return collect_outcomes(tmp_path_factory.mktemp("quick"), "quick")


@pytest.fixture(scope="module")
def long_outcomes(tmp_path_factory) -> dict[str, str]:
    return collect_outcomes(tmp_path_factory.mktemp("long"), "long")


@pytest.mark.parametrize("name", [function.__name__ for function in CASES])
def test_that(quick_outcomes, name):
    assert quick_outcomes[name] == "passed", quick_outcomes[name]


@pytest.mark.long
@pytest.mark.parametrize("name", [function.__name__ for function in LONG_CASES])
def test_at_length_that(long_outcomes, name):
    assert long_outcomes[name] == "passed", long_outcomes[name]


# --- the process that the transfer runs in


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Case:
    with start_hub() as (process, endpoint):
        for name, value in hub_environment(endpoint, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_alone")
        monkeypatch.setenv("HUB_PID", str(process.pid))
        case = Case("alone", tmp_path)
        case.write()
        yield case


def test_a_transfer_that_hangs_is_killed_with_its_process(hub, monkeypatch):
    monkeypatch.setattr(hub_transfer, "GRACE_SECONDS", 0.5)
    hub.fault("GET .*/tree/", action="drip", seconds=0.2, times=100)  # no request ever times out
    started = time.monotonic()
    result = run_transfer("publish", [hub.job()], replace(QUICK, total_seconds=2.5))
    assert re.search(r"it was not done within 2 s|not done within 3 s", result["failed"]) and result["done"] == []
    assert time.monotonic() - started < 20


def test_a_hub_that_is_gone_or_has_no_xet_is_reported_with_a_remedy_and_later_published_to(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    failed = run_transfer("publish", [hub.job()], QUICK)["failed"]
    assert "HF_HUB_DISABLE_XET=1" in failed, failed
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    result = run_transfer("publish", [hub.job()], QUICK)
    assert result["done"][0]["tag"] == "v1"
    hub.holds_release()
    os.kill(int(os.environ["HUB_PID"]), signal.SIGKILL)
    failed = run_transfer("publish", [hub.job()], QUICK)
    assert failed["unreachable"] and re.search(
        "cannot be reached .ConnectError.*check the connection", failed["failed"]
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in run_transfer("publish", [hub.job()], QUICK)["failed"]


def test_a_transfer_ends_with_the_process_that_started_it(hub):
    hub.fault("GET .*/tree/", action="hang", seconds=3, times=100)
    code = "import json, sys; from publishing.hub_transfer import Job, run_transfer; "
    code += "run_transfer('publish', [Job(**json.loads(sys.argv[1]))])"
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(asdict(hub.job()))]) as asking:
        deadline = time.monotonic() + 20
        while not any("/tree/" in request for request in hub.requests()) and time.monotonic() < deadline:
            time.sleep(0.05)
        sending = Path(f"/proc/{asking.pid}/task/{asking.pid}/children").read_text().split()
        asking.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in sending) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sending and not any(Path(f"/proc/{pid}").exists() for pid in sending)
    hub.holds_nothing()
