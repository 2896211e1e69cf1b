# SPDX-License-Identifier: Apache-2.0
"""Strict loading: every way a recipe can be wrong has its message, and all of them come at once."""

import importlib
import json
import os
import random
import shutil
import socket
import time
from pathlib import Path

import pytest
from tiny_run import RECIPES

import recipe_config
import recipe_loading
from amounts import read_bytes
from recipe_config import Recipe, RecipeError
from recipe_loading import load_recipe, parse_command_line


RIGHT = """
run: {output_dir: runs/x}
data:
  extract_text: data.py
  sources:
    - {name: law, path: law.jsonl, share: 0.6}
    - {name: web, path: web, share: 0.4}
model: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}
training:
  max_tokens: 1e6
  tokens_per_step: 8_192
  sequence_length: 128
  learning_rate: 6e-4
"""


@pytest.fixture
def load(tmp_path):
    """Load the text of a recipe with overrides; the problems it has are `load(...).problems`."""
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")

    def load_text(text: str = RIGHT, *overrides: str) -> Recipe | RecipeError:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        try:
            return load_recipe([path], list(overrides))
        except RecipeError as error:
            return error

    return load_text


def phase(settings: str) -> str:
    return f"--data.phases=[{{start_fraction: 0.5, shares: {{law: 1.0}}, {settings}}}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--run.seed=-1", "--run.seed: run.seed: input should be greater than or equal to 0, got -1"),
        ("--run.sead=1", "run.sead: unknown key, got 1; did you mean 'seed'?"),
        ("--zzz.q=1", 'zzz: unknown key, got {"q": 1}; the keys here are run, data,'),
        ("--training.learning_rate=fast", 'training.learning_rate: input should be a valid number, got "fast"'),
        ("--training.learning_rate='6e-4'", 'learning_rate: input should be a valid number, got "6e-4"'),
        ("--training.learning_rate=.nan", "learning_rate: input should be"),
        ("--training.learning_rate=.inf", "learning_rate: input should be"),
        ("--training.learning_rate=0", "learning_rate: input should be greater than 0, got 0"),
        ("--training.max_tokens=1.5", "max_tokens: input should be a valid integer, got 1.5"),
        ("--training.max_tokens=true", "max_tokens: input should be a valid integer, got true"),
        ("--training.max_tokens=100", "max_tokens: 100 is less than one sequence of sequence_length=128"),
        ("--training.max_tokens=1000", "max_tokens: 1000 is less than one step of tokens_per_step=8192"),
        ("--training.tokens_per_step=8193", "8193 is not divisible by sequence_length=128; nearest: 8192 or 8320"),
        ("--training.tokens_per_step=10", "10 is not divisible by sequence_length=128; nearest: 128"),
        ("--training.warmup_steps=122", "warmup_steps: 122 is not less than max_tokens / tokens_per_step = 122 steps"),
        ("--training.save_total_limit=1", "save_total_limit: 1 leaves nothing to resume from"),
        ("--training.optimizer=sgd", "optimizer: input should be 'adamw' or 'muon', got \"sgd\""),
        (
            "--training.attn_implementation=flash_attention_2",
            'attn_implementation: write auto or varlen: torch itself has FlashAttention, got "flash_attention_2"',
        ),
        ("--training.torch_compile=1", "torch_compile: input should be a valid boolean, got 1"),
        ("--training=3", "not an option; override a key of the recipe as --section.key=value"),
        ("--training.max_tokens", "not an option; override a key of the recipe as --section.key=value"),
        ("--model.hidden_size=66", "hidden_size: 66 is not divisible by num_attention_heads=4; set head_dim"),
        ("--model.hidden_size=60", "head_dim: a head of width 15 cannot be rotated in pairs"),
        ("--model.num_key_value_heads=3", "num_key_value_heads: 3 does not divide num_attention_heads=4"),
        ("--tokenizer.vocab_size=256", "vocab_size: input should be greater than or equal to 257, got 256"),
        ("--data.sources=[]", "data.sources: list should have at least 1 item"),
        ("--data.sources=[{name: a}]", "data.sources.0.path: missing; it says: File, folder, .whl, .zip or .tar"),
        (
            "--data.sources=[{name: a, path: b, lisence: c}]",
            "lisence: unknown key, got \"c\"; did you mean 'license'?",
        ),
        (
            "--data.sources=[{name: a, path: b, share: 0.9}]",
            "sources: the shares add up to 0.9; they must add up to 1",
        ),
        (
            "--data.sources=[{name: a, path: b, share: -1}]",
            "sources.0.share: input should be greater than or equal to 0, got -1",
        ),
        ("--data.sources=[{name: ../a, path: b}]", "--data.sources: data.sources.0.name: string should match pattern"),
        ("--data.sources=[{name: A, path: b}]", "sources.0.name: string should match pattern"),
        ("--data.splits.test_fraction=0.6", "splits.test_fraction: input should be less than 0.5, got 0.6"),
        (
            "--data.splits={validation_fraction: 0.3, test_fraction: 0.3}",
            "splits.validation_fraction: with test_fraction it",
        ),
        (phase("sequence_length: 300"), "300 is not a multiple of training.sequence_length=128; nearest: 256 or 384"),
        (phase("sequence_length: 384"), "8 * 128 = 1024, the tokens of a forward pass; set training.per_device_train"),
        (phase("sequence_length: 384"), "batch_size to a multiple of 3"),
        (
            phase("rope_parameters: {rope_type: ntk, rope_theta: 1e5}"),
            "rope_type: input should be 'default'",
        ),
        (phase("rope_parameters: {rope_type: yarn, rope_theta: 1e5}"), "factor: missing; rope_type=yarn needs it"),
        (phase("rope_parameters: {factor: 2.0, rope_theta: 1e5}"), "factor: is not read with rope_type=default"),
        ("--tokenizer.revision=abc", "tokenizer.revision: needs a tokenizer to apply to"),
        ("--hub.repo_id=noslash", "hub.repo_id: string should match pattern"),
        ("--evaluation.tasks=[../x]", "evaluation.tasks.0: string should match pattern"),
        ("--run.resume=[", "--run.resume:1: "),
        (f"--run.output_dir={__file__}/run", "run cannot be a folder: Not a directory; name another"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_its_value_and_the_remedy(load, override, message):
    error = load(RIGHT, override)
    assert isinstance(error, RecipeError) and message in str(error), error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {output_dir: a}\nrun: {output_dir: b}", 'recipe.yaml:2: found duplicate key "run"'),
        ("- a", "recipe.yaml: a recipe is a mapping of sections, got list"),
        ("", "recipe.yaml: a recipe is a mapping of sections, got NoneType"),
        ("run: !!python/object/apply:os.system [id]", "recipe.yaml:1: could not determine a constructor"),
        ("run: &a {x: *a}", "nested deeper than 16 levels"),
        ("a: &a x\nb: [" + ", ".join(["*a"] * 17) + "]", "more than 16 aliases; write the values out"),
        ("a: " + "[" * 20 + "]" * 20, "nested deeper than 16 levels"),
        ("# " + "x" * 1_000_000, "larger than 1000000 bytes"),
        ("base: recipe.yaml", "base: includes the file itself"),
        ("base: none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("base: circle.yaml", "circle.yaml: cannot be read: Too many levels of symbolic links"),
        ("base: 3", "base: expected the name of a YAML file, got 3"),
        ("run: 3", "run: input should be a valid dictionary"),
        ("{", "recipe.yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(load, text, message):
    error = load(text)
    assert isinstance(error, RecipeError) and message in str(error), error


def write_hostile(number: int, folder: Path) -> Path:
    """Write the hostile recipe of a number; without its flaw each but the broken ones would load."""
    draw = random.Random(number)
    path, size = folder / "recipe.yaml", draw.choice([900, 5_000, 100_000])
    bad = draw.choice(["\\0", "\\x01", "\\x1b", "\\x7f", "\\x85", "\\ud800", "\\udfff", "\\n", "\\r"])
    quoted = f'"runs/{"x" * draw.randrange(9)}{bad}y"'
    digits = "".join(draw.choices("123456789", k=5_000))
    scalars = ["!!int abc", "!!float abc", "2001-99-99", digits, f"0x{digits}", "!!bool 7", "!!binary '*'"]
    scalars += ["!!timestamp x", "!!python/name:os.system", "!!set [1]", "!!omap {a: 1}", "*unknown", "!x y"]
    key = draw.choice(
        ["? [a, b]\n:", "? {a: b}\n:", "1:", "null:", "true:", "2001-01-01:", "? [[]]\n:", "1.5:", "[]:"]
    )
    aliases = "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 3)}]" for i in range(1, 6))
    merges = "\n".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 9))
    kinds = [
        lambda: RIGHT + "zzz: " + draw.choice("[{") * size,
        lambda: RIGHT + "zzz: " + "[" * size + "]" * size,
        lambda: RIGHT + "zzz:\n" + "".join(" " * i + "a:\n" for i in range(1, 900)),
        lambda: RIGHT + "zzz:\n  " + draw.choice(["- ", "? ", "! ", "&a "]) * size,
        lambda: RIGHT + f"k0: &k0 [{', '.join('x' * 500)}]\n{aliases}\n",
        lambda: RIGHT + f"m0: &m0 {{{', '.join(f'k{i}: 1' for i in range(draw.choice([900, 3_999])))}}}\n{merges}\n",
        lambda: RIGHT.replace("runs/x", f"'{'x{}'.format(draw.choice([' ', chr(10), chr(10) * 2])) * 290_000}'"),
        lambda: RIGHT + f"{key} 1\n",
        lambda: RIGHT.replace("runs/x", quoted),
        lambda: RIGHT.replace("law.jsonl", quoted),
        lambda: RIGHT.replace("data.py", quoted),
        lambda: RIGHT.replace("1e6", draw.choice(scalars)),
        lambda: RIGHT.replace("runs/x", draw.choice(scalars)),
        lambda: RIGHT + "".join(f"k{i}: {i}\n" for i in range(draw.choice([8_000, 50_000]))),
        lambda: RIGHT.replace("model: {", "model: {" + ", ".join(f"k{i}: 1" for i in range(9_000)) + ", "),
        lambda: (
            RIGHT + draw.choice(["run: {}", "--- {}", "a: b: c", "\ta: 1", "%YAML 9.9", "'", '"\\q"', "a: |9x", "@a"])
        ),
        lambda: RIGHT + draw.choice("\0\x01\x7f\ufffe"),
        lambda: RIGHT + f"base: {draw.choice(['pipe', '.', '/dev/zero', '/dev/tty', 'socket', quoted, '[[x]]'])}",
        lambda: RIGHT + "base: [b0.yaml, b0.yaml]",
        lambda: RIGHT + "base: circle",
        lambda: RIGHT.replace(
            "runs/x", str(folder / draw.choice(["b0.yaml", "b0.yaml/run", "circle/run", "x" * 300]))
        ),
    ]
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))  # a longer name than 108 bytes is refused
    for i in range(20):
        (folder / f"b{i}.yaml").write_text(f"base: [b{i + 1}.yaml, b{i + 1}.yaml]\n" if i < 19 else "run: {}\n")
    content = kinds[number % len(kinds)]().encode("utf-8", "surrogatepass")
    broken = [content, content, content, b"\xff\xfe" + content, content + b"\xc3\x28", RIGHT.encode("utf-16")]
    path.write_bytes(draw.choice(broken))
    return path


@pytest.mark.parametrize(
    "numbers", [range(21), pytest.param(range(21, 200), marks=pytest.mark.long)], ids=["sample", "rest"]
)
def test_hostile_files_are_refused_within_2_seconds_with_their_name(tmp_path, numbers):
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        path, started = write_hostile(number, folder), time.process_time()
        with pytest.raises(RecipeError) as refused:
            pytest.fail(f"{number} is accepted: {load_recipe([path])}")
        seconds = time.process_time() - started
        assert seconds < 2, (number, seconds, str(refused.value)[:200])
        for problem in refused.value.problems:
            assert problem.startswith((str(folder), "/dev/")) and len(problem) < 1_000, (number, problem[:200])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int abc", "recipe.yaml:1: cannot be read as int"),
        ("a: 1\nb: 2001-99-99", "recipe.yaml:2: cannot be read as timestamp"),
        ("a: 1\n? [b]\n: 2", "recipe.yaml:2: a key is a word, and this is seq"),
        ("a: " + "[" * 100_000, "recipe.yaml:1: nested deeper than 16 levels"),
        (
            "a: &a {" + ", ".join(f"k{i}: 1" for i in range(2_000)) + "}\nb: {<<: [*a, *a]}",
            "2: more than 10000 values",
        ),
        (f"a: '{'x ' * 40_000}'", "recipe.yaml:1: a text of more than 65536 characters; put it into a file"),
        ("a: '" + "\n" * 20_001 + "'", "recipe.yaml: more than 20000 lines; put long lists into files"),
        ("a: [" + "1, " * 30_000 + "]", "recipe.yaml:1: more than 10000 values; put long lists into files"),
        ('a:\n  b: "x\\0y"', "recipe.yaml:2: holds a character that is no text: NUL, or half of a surrogate pair"),
        (f"a: 0x{'f' * 5000}", "recipe.yaml:1: is a number of more than 64 bits"),
        (RIGHT.replace("runs/x", '"a\\nb"'), "recipe.yaml:2: run.output_dir: a line break, tab or control character"),
        ("base: .", "cannot be read: no file, but a folder, pipe or device; name a YAML file"),
    ],
)
def test_what_the_parser_cannot_build_is_named_with_its_line(load, text, message):
    error = load(text)
    assert isinstance(error, RecipeError) and message in str(error), error


def test_characters_beyond_the_first_plane_may_be_written_as_json_does(load):
    assert load(RIGHT, "--evaluation.prompts=" + json.dumps(["\U0001f600\n"])).evaluation.prompts == ["\U0001f600\n"]


def test_a_recipe_without_a_data_py_says_where_to_get_one(load):
    error = load(RIGHT.replace("  extract_text: data.py\n", ""))
    assert "data.extract_text: no data.py beside the recipe; copy recipes/custom/data.py there" in str(error)


def test_all_problems_are_listed_at_once_each_with_its_file_and_line(load):
    text = RIGHT.replace("share: 0.6", "shaer: 0.6").replace("hidden_size: 64", "hidden_size: 6.5")
    error = load(text + "  seed: 3\ntrainin: 1\n", "--run.seed=x", "--nonsense")
    assert len(error.problems) == 6
    for place in ("recipe.yaml:6: data.sources.0.shaer", "recipe.yaml:8: model.hidden_size", "--run.seed: run.seed"):
        assert any(place in problem for problem in error.problems), error
    assert any("trainin: unknown key, got 1; did you mean 'training'?" in problem for problem in error.problems)


def test_numbers_may_be_written_as_people_write_them(load):
    recipe = load(RIGHT, "--training.max_tokens=2e9", "--training.learning_rate=6e-4", "--run.seed=010")
    assert recipe.training.max_tokens == 2_000_000_000 and isinstance(recipe.training.max_tokens, int)
    assert recipe.training.tokens_per_step == 8192
    assert recipe.training.learning_rate == 6e-4
    assert recipe.run.seed == 10


def test_a_later_file_wins_and_an_override_wins_over_both(tmp_path):
    (tmp_path / "a.yaml").write_text(RIGHT)
    (tmp_path / "b.yaml").write_text("base: a.yaml\nrun: {seed: 1}\ntraining: {warmup_steps: 5}")
    (tmp_path / "c.yaml").write_text("training: {warmup_steps: 6, eval_steps: 7}")
    recipe = load_recipe([tmp_path / "b.yaml", tmp_path / "c.yaml"], ["--training.eval_steps=8"])
    assert (recipe.run.seed, recipe.training.warmup_steps, recipe.training.eval_steps) == (1, 6, 8)
    assert recipe.training.max_tokens == 1_000_000


def test_sources_may_be_given_as_a_json_list(load):
    sources = [{"name": "mine", "path": "my texts", "data_files": ["*.txt"], "share": 1}]
    recipe = load(RIGHT, f"--data.sources={json.dumps(sources)}")
    assert [(s.name, s.path, s.data_files, s.label) for s in recipe.data.sources] == [
        ("mine", "my texts", ["*.txt"], "mine")
    ]


def test_the_resolved_recipe_loads_to_an_equal_one(load, tmp_path):
    recipe = load()
    (tmp_path / "resolved.yaml").write_text(recipe.dump_yaml())
    assert load_recipe([tmp_path / "resolved.yaml"]) == recipe


def test_an_override_may_hold_spaces_and_follow_the_config_directly(tmp_path):
    (tmp_path / "r.yaml").write_text(RIGHT)
    sources = '--data.sources=[{"name": "mine", "path": "my texts"}]'
    recipe, options = parse_command_line("", ["--config", str(tmp_path / "r.yaml"), sources, "--overwrite"])
    assert recipe.data.sources[0].path == "my texts"
    assert options.overrides == [sources] and options.overwrite


def test_the_command_line_exits_with_status_2_and_every_problem(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RIGHT)
    with pytest.raises(SystemExit) as stopped:
        parse_command_line("", ["--config", str(tmp_path / "r.yaml"), "--run.seed=x", "--run.sed=1"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def show_help(capsys, *topic: str) -> tuple[int, str]:
    """Return the exit status of --help, and what it prints."""
    with pytest.raises(SystemExit) as stopped:
        parse_command_line("What it does.", ["--help", *topic])
    shown = capsys.readouterr()
    return stopped.value.code, shown.err if stopped.value.code else shown.out


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("trainin", "--help trainin: no section or key 'trainin'; did you mean 'training'?"),
        ("data.sorces", "--help data.sorces: no section or key 'sorces'; did you mean 'sources'?"),
        ("zzz", "no section or key 'zzz'; the keys here are run, data, tokenizer"),
        ("training.max_token", "no section or key 'max_token'; did you mean 'max_tokens'?"),
        ("run.seed.x", "--help run.seed.x: run.seed is a key, not a section; --help run.seed"),
        ("", "no section or key ''"),
    ],
)
def test_help_on_what_is_no_section_is_refused_with_the_nearest_name(capsys, topic, message):
    status, shown = show_help(capsys, topic)
    assert status == 2 and message in shown, shown


def test_help_lists_the_sections_a_line_each(capsys):
    status, shown = show_help(capsys)
    assert status == 0 and shown.startswith("usage:") and "What it does." in shown and "--overwrite" in shown
    listed = shown.partition("sections of the recipe")[2].splitlines()[1:]
    assert [line.split()[0] for line in listed[:-1]] == list(Recipe.model_fields)
    assert all(len(line) < 120 and len(line.split()) >= 2 for line in listed), "each says what it is for"
    assert "--help all" in listed[-1] and "--training." not in shown


def test_help_on_a_section_lists_its_keys_alone(capsys):
    shown = show_help(capsys, "training")[1]
    assert all(f"--training.{key}" in shown for key in Recipe.model_fields["training"].annotation.model_fields)
    assert "--training.max_seconds  (default null)" in shown and "(seconds)" in shown
    assert "--run." not in shown and "rollback.after_skips" not in shown and "--help training.stability" in shown
    for topic in ("data.sources", "data.sources[]"):
        shown = show_help(capsys, topic)[1]
        assert "--data.sources[].path  (required)" in shown and "--data.splits" not in shown
    assert "after_skips" in show_help(capsys, "training.stability.rollback")[1], "a section that may be null too"
    assert show_help(capsys, "run.seed") == (
        0,
        "  --run.seed  (default 0)\n        Seed of the initial weights and of the data order.\n",
    )


def test_the_cards_languages_are_those_that_the_text_was_filtered_for_unless_the_recipe_names_them(load):
    korean = "--data.languages={keep: [ko]}"
    assert load(RIGHT).hub.language == ["en"]
    assert load(RIGHT, korean).hub.language == ["ko"]
    assert load(RIGHT, korean, "--hub.language=[ko, en]").hub.language == ["ko", "en"]


@pytest.mark.parametrize("command", ["plan_run", "prepare_data", "push_to_hub", "choose_vocabulary", "summary_page"])
def test_every_command_shows_the_same_help(capsys, command):
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help", "hub"])
    assert capsys.readouterr().out == show_help(capsys, "hub")[1]


def test_help_all_lists_every_key_with_its_default_and_its_unit(capsys):
    shown = show_help(capsys, "all")[1]

    def keys(section, prefix=""):
        for key, field in section.model_fields.items():
            nested = next(recipe_loading.models_in(field.annotation), None)
            many = "[]" if "list[" in str(field.annotation) and nested else ""
            yield from keys(nested, f"{prefix}{key}{many}.") if nested else [prefix + key]

    listed = list(keys(Recipe))
    assert len(listed) > 60
    for key in listed:
        assert f"--{key}" in shown, key
    assert "--training.max_seconds  (default null)" in shown and "(seconds)" in shown


@pytest.mark.parametrize("place", ["clients/acme", "clients/acme/model", "./acme", "~/acme", "/nowhere/acme", "acme/"])
def test_the_missing_folder_of_a_model_is_refused_before_the_hub_is_asked(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients").mkdir()
    with pytest.raises(RecipeError, match=f"model.from_pretrained='{place}': no such folder in {tmp_path}"):
        recipe_config.refuse_missing_folder("model.from_pretrained", place)


@pytest.mark.parametrize("place", ["owner/name", "gpt2", "clients/here", "clients"])
def test_a_hub_id_and_a_folder_that_exists_are_not_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "here").mkdir(parents=True)
    recipe_config.refuse_missing_folder("model.from_pretrained", place)


@pytest.mark.parametrize("override", ["--run.output_dir=try #3", "--run.output_dir=#3", "--run.output_dir='a' # b"])
def test_an_override_that_a_comment_would_cut_short_is_refused(load, override):
    [problem] = load(RIGHT, override).problems
    assert problem.startswith("--run.output_dir: # begins a comment in YAML, got")


@pytest.mark.parametrize(
    ("override", "value"), [('--run.output_dir="try #3"', "try #3"), ("--run.output_dir=try#3", "try#3")]
)
def test_a_number_sign_that_begins_no_comment_stays(load, override, value):
    assert load(RIGHT, override).run.output_dir == value


@pytest.mark.parametrize("key", ["run.output_dir", "model.from_pretrained", "data.extract_text", "hub.license_file"])
@pytest.mark.parametrize("path", ["~/runs", "~somebody/runs"])
def test_a_tilde_that_only_the_shell_expands_is_refused_by_its_key(load, key, path):
    problems = load(RIGHT, f"--{key}={path}").problems
    assert f"--{key}: {key}: ~ is not expanded here, got '{path}'; write the home folder out" in "".join(problems)


def test_a_tilde_in_a_source_is_refused_and_one_in_a_prompt_is_text(load):
    text = RIGHT.replace("path: web", "path: ~/web")
    assert "data.sources.1.path: ~ is not expanded here, got '~/web'" in "".join(load(text).problems)
    assert load(RIGHT, '--evaluation.prompts=["~/.bashrc is"]').evaluation.prompts == ["~/.bashrc is"]


@pytest.mark.parametrize("name", ["custom", "legal", "finance", "medical"])
def test_a_copied_recipe_has_runs_of_its_own(name, tmp_path):
    shutil.copytree(RECIPES / "sizes", tmp_path / "sizes")
    shutil.copytree(RECIPES / name, tmp_path / "telecom")
    for path in (tmp_path / "telecom").glob("*.yaml"):
        if path.stem != "bloomberggpt":  # a model of others, whose run has their name
            original, copy = load_recipe([RECIPES / name / path.name]), load_recipe([path])
            assert original.run.output_dir.startswith(f"runs/{name}"), path
            assert copy.run.output_dir == original.run.output_dir.replace(name, "telecom"), path


def test_the_schema_for_editors_is_that_of_the_code(capsys):
    recipe_config.main()
    stored = Path(RECIPES / "recipe.schema.json").read_text()
    assert capsys.readouterr().out == stored, "rerun: python recipes/recipe_config.py > recipes/recipe.schema.json"


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("0.067GB", 67_000_000), ("1.1 KiB", 1126.4), ("2.5e3 MB", 2_500_000_000)]
)
def test_an_amount_with_a_unit_is_exact(text, num_bytes):
    assert read_bytes(text) == num_bytes
    assert isinstance(read_bytes(text), int) == (num_bytes == int(num_bytes))


@pytest.mark.parametrize(
    "override", ["--finetune.train={name: mine, path: my.jsonl, revision: null}", "--finetune.train.path=my.jsonl"]
)
def test_a_dataset_that_replaces_another_does_not_inherit_its_licence_and_address(override):
    summarise = RECIPES / "legal" / "summarise.yaml"
    train = load_recipe([summarise], [override]).finetune.train
    assert (train.path, train.license, train.url) == ("my.jsonl", None, None)
    assert load_recipe([summarise], ["--finetune.train.split=test"]).finetune.train.license == "CC0 1.0"
    assert load_recipe([summarise], [override, "--finetune.train.license=MIT"]).finetune.train.license == "MIT"
