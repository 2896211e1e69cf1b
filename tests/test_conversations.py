# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on instructions and conversations: rows, template, answers, packing, and a whole run."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from small_models import small_model
from small_tokenizers import KINDS
from test_finetune import LONGER
from tiny_run import TinyRun, make_text
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import finetune
import pretrain
import tokenize_corpus
import train_tokenizer
from conversations import (
    ROLES,
    answer,
    answer_bits,
    bits_per_byte,
    encode_messages,
    mark_answers,
    read_conversations,
    stop_tokens,
    with_chat_template,
    without_control_tokens,
)
from recipe_config import RecipeError, Source
from recipe_loading import load_recipe
from summary_page import build_page


# Questions of the civics test of US Citizenship and Immigration Services, with its answers: public domain.
CIVICS = {
    "What is the supreme law of the land?": "the Constitution",
    "What is an amendment?": "an addition to the Constitution",
    "What do we call the first ten amendments to the Constitution?": "the Bill of Rights",
    "Who is in charge of the executive branch?": "the President",
    "What is the highest court in the United States?": "the Supreme Court",
    "Who makes federal laws?": "Congress",
}
WAYS = ("{}", "Civics test: {}", "Please answer: {}", "Say in a few words: {}")


def turns(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def write_rows(path, ways: tuple[str, ...]) -> None:
    """Write a prompt and its completion, or messages with a second turn, one JSON object a line."""
    rows = []
    for number, (question, reply) in enumerate(CIVICS.items()):
        for way in ways:
            asked = way.format(question)
            pair = {"prompt": asked, "completion": reply}
            thanked = turns(asked, reply, "Thank you.", "You are welcome.")
            system = {"role": "system", "content": "Answer briefly."}
            rows.append(pair if number % 2 else {"messages": [system, *thanked]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


RESERVED = "--tokenizer.num_reserved_tokens=8"


@pytest.fixture(scope="module")
def reserving(tokenized_run, tmp_path_factory) -> TinyRun:
    """A run whose tokenizer has reserved tokens, ready to train."""
    run = TinyRun(tokenized_run.texts, tmp_path_factory.mktemp("reserving") / "run")
    shutil.copytree(tokenized_run.output_dir / "documents", run.output_dir / "documents")
    for stage in (train_tokenizer, tokenize_corpus):
        stage.main(run.argv(RESERVED))
    return run


@pytest.fixture(scope="module")
def tokenizer(reserving):
    return with_chat_template(AutoTokenizer.from_pretrained(reserving.output_dir / "tokenizer"), adapters=False)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "Why?", "completion": " Because. "},
        {"messages": turns("a", "b", "c", "d")},
        {"prompt": turns("a"), "completion": turns("a", "b")[1:]},
        {"messages": turns("only asked")},
        {"messages": turns("a", "")},
        {"messages": [{"role": "tool", "content": "x"}, *turns("a", "b")]},
        {"messages": [*turns("a", "b"), {"role": "system", "content": "late"}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"text": "plain"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, left_out = read_conversations(Source(name="rows", path=str(tmp_path / "rows.jsonl")), None)
    assert found == [turns("Why?", "Because."), turns("a", "b", "c", "d"), turns("a", "b")] and left_out == 6
    (tmp_path / "rows.jsonl").write_text('{"text": "plain"}\n')
    with pytest.raises(RecipeError, match="rows: none of 1 rows of .* is a conversation that ends with an answer"):
        read_conversations(Source(name="rows", path=str(tmp_path / "rows.jsonl")), None)


def test_reserved_tokens_become_the_roles_and_every_id_stays(reserving, tokenizer):
    before = AutoTokenizer.from_pretrained(reserving.output_dir / "tokenizer")
    roles = [tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES]
    assert roles == [before.convert_tokens_to_ids(f"<|reserved_{number}|>") for number in range(3)]
    assert len(tokenizer) == len(before) and tokenizer("The court.")["input_ids"] == before("The court.")["input_ids"]
    ids = encode_messages(turns("Is it so?", "It is."), tokenizer)
    assert [token for token in ids if token in roles] == roles[1:] and ids[-1] == tokenizer.eos_token_id
    assert (tokenizer.bos_token, tokenizer.eos_token) == (before.bos_token, before.eos_token)


def test_adapters_and_models_without_reserved_tokens_have_roles_in_words(reserving):
    ours = AutoTokenizer.from_pretrained(reserving.output_dir / "tokenizer")
    for plain, adapters in ((ours, True), (KINDS["GPT-2"](), False)):
        names = set(plain.get_vocab())
        text = with_chat_template(plain, adapters).apply_chat_template(turns("a", "b"), tokenize=False)
        assert "User: a" in text and "Assistant: b" in text and set(plain.get_vocab()) == names
    template = KINDS["Llama 3"]().chat_template
    assert with_chat_template(KINDS["Llama 3"](), adapters=False).chat_template == template, "the base's own is kept"


def marked_text(row: dict, tokenizer) -> str:
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    return tokenizer.decode([token for token, marked in pairs if marked])


def test_only_answers_and_their_ends_are_marked(tokenizer):
    messages = turns("Is it <|assistant|>so?", "It is.", "Thanks.", "Welcome <|endoftext|>!")
    (row,) = mark_answers(without_control_tokens(messages, tokenizer), tokenizer)
    assert marked_text(row, tokenizer) == "It is.<|endoftext|>Welcome !<|endoftext|>"
    assert tokenizer.decode(row["input_ids"]).count("<|assistant|>") == 2, "what a text spells is no role"


THINKS_LAST = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if loop.last and message.role == 'assistant' %}<think></think>{% endif %}{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_an_answer_that_the_template_writes_otherwise_once_others_follow_is_learned_in_a_row_of_its_own():
    """As Qwen 3's does, which puts its thoughts into the last answer only."""
    tokenizer, end = KINDS["GPT-2"](), "<|endoftext|>"
    tokenizer.chat_template = THINKS_LAST
    messages = turns("a", "b", "c", "d")
    last, first = mark_answers(messages, tokenizer)
    assert marked_text(last, tokenizer) == f"<think></think>d{end}"
    assert marked_text(first, tokenizer) == f"<think></think>b{end}"
    assert tokenizer.decode(first["input_ids"]) == f"<user>a{end}<assistant><think></think>b{end}"
    assert last["input_ids"] == encode_messages(messages, tokenizer) and "b" in tokenizer.decode(last["input_ids"])
    assert stop_tokens(last, tokenizer) == [tokenizer.eos_token_id]

    model = small_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    together = answer_bits(model, tokenizer, [messages])[0]
    alone = answer_bits(model, tokenizer, [messages[:2]])[0]
    assert 0 < alone[0] < together[0] and (alone[1], together[1]) == (1, 2), "bits and bytes of both answers"


def test_a_template_that_rewrites_what_is_before_an_answer_is_refused():
    tokenizer = KINDS["GPT-2"]()
    tokenizer.chat_template = "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(RecipeError, match="the chat template of the model changes what is before an answer"):
        mark_answers(turns("a", "b", "c", "d"), tokenizer)


def test_a_role_that_the_template_refuses_is_refused_with_the_row_and_what_to_do():
    """As Gemma's refuses a system message."""
    tokenizer = KINDS["Gemma"]()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    messages = [{"role": "system", "content": "Be brief."}, *turns("Who makes laws?", "Congress")]
    with pytest.raises(RecipeError) as refused:
        mark_answers(messages, tokenizer)
    for part in ("'Who makes laws?'", "roles system, user", "System role not supported", "first user message"):
        assert part in str(refused.value)


def chat_settings(folder, **more) -> list[str]:
    chosen = {
        "task": "chat",
        "train": {"name": "facts", "path": str(folder / "train.jsonl")},
        "test": {"name": "asked-otherwise", "path": str(folder / "test.jsonl"), "license": "public domain"},
        "sequence_length": 128,
        "max_summary_tokens": 32,
        "num_train_epochs": 12,
        "examples_per_step": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
    }
    return [f"--finetune.{key}={json.dumps(value)}" for key, value in (chosen | more).items()]


def test_conversations_that_hold_benchmark_items_are_left_out_and_counted(reserving, tmp_path):
    write_rows(tmp_path / "train.jsonl", WAYS[:2])
    write_rows(tmp_path / "test.jsonl", WAYS[3:])
    asked = "Which of these is a civil wrong for which the injured party may recover damages in court?"
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": asked, "completion": "A tort."}) + "\n")
    (tmp_path / "benchmarks").mkdir()
    item = {"id": "0", "context": asked, "choices": ["A tort.", "A lien."], "gold": 0}
    (tmp_path / "benchmarks" / "task.jsonl").write_text(json.dumps(item) + "\n")
    argv = reserving.argv(
        *chat_settings(tmp_path), f"--data.decontamination={{benchmarks: {tmp_path / 'benchmarks'}}}"
    )
    recipe = load_recipe([argv[1]], argv[2:])
    examples = finetune.choose_conversations(recipe.finetune, *finetune.load_benchmarks(recipe))
    assert examples.left_out["train_with_benchmark_items"] == 1 and len(examples.train) == 12


def test_conversations_that_share_a_sequence_do_not_see_each_other(reserving, tokenizer, tmp_path):
    write_rows(tmp_path / "train.jsonl", WAYS[:2])
    argv = reserving.argv(*chat_settings(tmp_path, sequence_length=128), f"--run.output_dir={tmp_path}")
    recipe = load_recipe([argv[1]], argv[2:])
    model = small_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    found, _ = read_conversations(recipe.finetune.train, None)
    rows = [row for messages in found for row in mark_answers(messages, tokenizer)]
    trainer = finetune.build_trainer(recipe, model, tokenizer, rows, tmp_path / "checkpoints")
    assert len(trainer.train_dataset) < len(rows), "several share a sequence"
    nats = scored = 0.0
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            labels = batch["labels"]
            count = int((labels[:, 1:] != -100).sum())
            batch.pop("num_items_in_batch", None)
            nats, scored = nats + model(**batch).loss.item() * count, scored + count
        alone = 0.0
        for row in rows:
            ids, mask = torch.tensor([row["input_ids"]]), torch.tensor(row["assistant_masks"][1:], dtype=torch.bool)
            alone += F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")[mask].sum().item()
    assert scored == sum(sum(row["assistant_masks"]) for row in rows)
    assert nats == pytest.approx(alone, rel=1e-4)


@pytest.fixture(scope="module")
def chatting(reserving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatting")
    run = reserving.copy(folder / "run")
    pretrain.main(run.argv(*LONGER, RESERVED))
    write_rows(folder / "train.jsonl", WAYS[:3])
    write_rows(folder / "test.jsonl", WAYS[3:])
    spelled = (folder / "test.jsonl").read_text().replace('"the Bill', '"the <|endoftext|>Bill')
    (folder / "test.jsonl").write_text(spelled)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": make_text(1), "completion": "Too long."}) + "\n")
        file.write((folder / "test.jsonl").read_text().splitlines()[1] + "\n")
    argv = run.argv(*LONGER, RESERVED, *chat_settings(folder))
    finetune.main(argv)
    return run, argv


def test_a_run_ends_in_a_model_that_answers_as_it_was_taught(chatting, capsys):
    run, argv = chatting
    folder = run.output_dir / "finetuned"
    results = json.loads((folder / "results.json").read_text())
    assert results["documents"] == {
        "train": 18,
        "test": 6,
        "left_out": {
            "train": 0,
            "test": 0,
            "train_also_in_test": 1,
            "train_with_benchmark_items": None,
            "train_too_long": 1,
            "test_too_long": 0,
        },
    }
    replies = len("".join(CIVICS.values()).encode())
    assert results["answer_bytes"] == replies + 3 * len("You are welcome."), "without the token that one spells"
    before, after = results["bits_per_byte"]["before"], results["bits_per_byte"]["after"]
    assert after["mean"] < before["mean"] / 2 and after["low"] <= after["mean"] <= after["high"] < before["low"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "<|user|>" in tokenizer.get_vocab() and "<|assistant|>" in tokenizer.chat_template
    assert GenerationConfig.from_pretrained(folder).eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
    for question in ("Who makes federal laws?", "What is the highest court in the United States?"):
        assert answer(turns(question, "?"), model, tokenizer, 32) == CIVICS[question]
    finetune.main(argv)
    assert "nothing to do" in capsys.readouterr().out


def test_the_card_shows_the_scores_the_licences_and_how_to_talk_to_it(chatting):
    folder = chatting[0].output_dir / "finetuned"
    card = (folder / "README.md").read_text()
    after = json.loads((folder / "results.json").read_text())["bits_per_byte"]["after"]["mean"]
    assert "fine-tuned to converse" in card and f"| after | {after:.3f} (" in card
    assert "fine-tuned on 18 conversations, by\ntraining every weight" in card and "public domain" in card
    assert "transformers chat path/to/this/folder" in card and "Say in a few words: What is an amendment?" in card
    assert "conversational" in metadata_load(folder / "README.md")["tags"]


def test_one_test_conversation_gives_no_interval(chatting):
    run, argv = chatting
    results = json.loads((run.output_dir / "finetuned" / "results.json").read_text())
    one = bits_per_byte(np.array([[12.0, 8]]))
    assert one == {"low": None, "mean": 1.5, "high": None}
    results["documents"]["test"], results["bits_per_byte"] = 1, {"before": one, "after": one}
    results["examples"][0]["prompt"] = "\u200b"
    card = finetune.write_card(load_recipe([argv[1]], argv[2:]), results)
    assert "| after | 1.500 |" in card and "interval" not in card and "| asked | (nothing) |" in card


def test_the_page_of_summaries_says_how_to_talk_to_a_chat_model(chatting):
    run, argv = chatting
    recipe = load_recipe([argv[1]], argv[2:])
    with pytest.raises(RecipeError, match=f"transformers chat {run.output_dir / 'finetuned'}"):
        build_page(recipe)


def test_an_answer_ends_where_a_model_with_learned_positions_has_no_more(tmp_path):
    tokenizer = with_chat_template(KINDS["GPT-2"](), adapters=True)
    model = small_model("gpt2", vocab_size=448)
    messages, longest = turns("a", "b"), model.config.max_position_embeddings
    while len(encode_messages(messages, tokenizer)) <= longest:
        messages = turns(messages[0]["content"] + " a", "b")
    messages = turns(messages[0]["content"][:-2], "b")
    model.generation_config.eos_token_id = None
    assert isinstance(answer(messages, model, tokenizer, longest), str)


def test_the_card_names_the_base_its_licence_and_its_terms(chatting, tmp_path):
    run, argv = chatting
    found = json.loads((run.output_dir / "finetuned" / "results.json").read_text())
    assert "not aim at refusing harmful requests" in (run.output_dir / "finetuned" / "README.md").read_text()
    base = tmp_path / "instruct"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.2\nbase_model: meta-llama/Llama-3.2-1B\n---\n")
    named = "the local model instruct, which was made from meta-llama/Llama-3.2-1B"
    for key, model in (
        ("finetune.model", named),
        ("model.from_pretrained", f"model/ of the run, continued from {named}"),
    ):
        recipe = load_recipe([argv[1]], [*argv[2:], f"--{key}={base}", f"--run.output_dir={tmp_path / 'run'}"])
        card = finetune.write_card(recipe, found)
        assert "base_model: meta-llama/Llama-3.2-1B" in card and f"| model | {model} | " in card, key
        assert "The licence llama3.2 of the local model instruct binds this model too." in card
        assert "Llama 3.2 is licensed under" in card and "weakened it" in card
    with pytest.raises(RecipeError, match=r"whose licence is llama3\.2"):
        finetune.main([*argv, f"--finetune.model={base}", f"--run.output_dir={tmp_path / 'run'}", "--hub.license=mit"])


def test_conversations_that_do_not_fit_are_refused_with_the_counts(chatting, tmp_path):
    _, argv = chatting
    with pytest.raises(RecipeError, match=r"finetune.train: no conversation fits finetune.sequence_length=16"):
        finetune.main([*argv, "--finetune.sequence_length=16", "--finetune.max_summary_tokens=8", "--overwrite"])
