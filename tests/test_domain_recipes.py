# SPDX-License-Identifier: Apache-2.0
"""The recipes of the domains: what data.py takes from each source, sizes, reference shapes, and text in Korean."""

import importlib.util
import json
import random

import pytest
import torch
from tiny_run import RECIPES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import prepare_data
import tokenize_corpus
import train_tokenizer
from model.llama import build_model, count_module_parameters
from recipe_loading import load_recipe


DOMAINS = ("legal", "finance", "medical")
SIZES = sorted(path.stem for path in (RECIPES / "sizes").glob("*.yaml"))


def extract_text_of(folder: str):
    spec = importlib.util.spec_from_file_location("data", RECIPES / folder / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_text


@pytest.mark.parametrize("folder", [*DOMAINS, "custom"])
def test_a_domains_data_py_is_one_pure_function(folder):
    extract_text = extract_text_of(folder)
    assert extract_text({"text": "a text", "path": "x"}, "mine") == "a text"
    assert extract_text({"path": "x"}, "mine") is None


def test_the_finance_data_py_takes_what_financial_agencies_wrote():
    extract_text = extract_text_of("finance")
    rule = "SECURITIES AND EXCHANGE COMMISSION\n17 CFR Part 240. Final rule."
    fishing = "National Marine Fisheries Service. Closed areas for vessels."
    assert extract_text({"text": rule}, "regulations") == rule
    assert extract_text({"text": fishing}, "regulations") is None
    assert extract_text({"text": fishing + " " * 4_000 + rule}, "government-documents") is None, (
        "only near the beginning"
    )
    assert extract_text({"text": fishing}, "filings") == fishing, "a source that is all finance is taken whole"


def test_the_medical_data_py_takes_clean_guidelines_and_questions_that_are_answered():
    extract_text = extract_text_of("medical")
    assert extract_text({"raw_text": "p. 3", "clean_text": "Dose."}, "guidelines") == "Dose."
    assert extract_text({"question": "What is it?", "answer": "A rash."}, "questions") == "What is it?\n\nA rash."
    assert extract_text({"question": "What is it?", "answer": None}, "questions") is None
    assert extract_text({"text": "written"}, "questions") == "written"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_recipe_takes_every_size_and_keeps_its_own_data(domain):
    base = load_recipe([RECIPES / domain / "base.yaml"])
    assert sum(source.share or 0 for source in base.data.sources if source.domain == "general") == 0.49
    assert base.data.min_shares == {domain: 0.51}
    for source in base.data.sources:
        assert source.license and source.url
    for size in SIZES:
        sized = load_recipe([RECIPES / domain / "base.yaml", RECIPES / "sizes" / f"{size}.yaml"])
        assert sized.data == base.data and sized.model != base.model or size == "360m"


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_trial_is_its_domains_recipe_with_the_smallest_size(domain):
    trial, base = (load_recipe([RECIPES / domain / f"{name}.yaml"]) for name in ("trial", "base"))
    sized = load_recipe([RECIPES / domain / "base.yaml", RECIPES / "sizes" / "5m.yaml"])
    assert (trial.model, trial.training, trial.tokenizer) == (sized.model, sized.training, sized.tokenizer)
    assert trial.data.extract_text == base.data.extract_text and trial.data.min_shares == base.data.min_shares
    assert trial.run.output_dir == f"runs/{domain}-trial" and trial.evaluation.xz


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_continued_model_reads_its_domains_text_and_is_compared_with_its_base(domain):
    continued, base = (load_recipe([RECIPES / domain / f"{name}.yaml"]) for name in ("continue", "base"))
    assert continued.data == base.data and continued.run.output_dir == f"runs/{domain}-continued"
    assert continued.evaluation.baselines == [continued.model.from_pretrained]
    assert continued.training.learning_rate < base.training.learning_rate / 3 + 1e-9
    small = load_recipe([RECIPES / domain / "trial.yaml", RECIPES / "sizes" / "smollm2_cpu.yaml"])
    assert small.evaluation.baselines == [small.model.from_pretrained] == ["runs/smollm2"]
    assert small.data.min_shares == base.data.min_shares


@pytest.mark.parametrize("name", ["25m", "125m", "360m", "1b"])
def test_a_size_has_about_the_parameters_of_its_name(name):
    recipe = load_recipe([RECIPES / "custom" / "base.yaml", RECIPES / "sizes" / f"{name}.yaml"])
    with torch.device("meta"):
        total = count_module_parameters(build_model(recipe, recipe.tokenizer.vocab_size))["total"]
    assert total == pytest.approx(float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]], rel=0.05)
    assert recipe.training.max_tokens / total == pytest.approx(20, rel=0.05)


def test_bloomberggpts_published_shape_has_its_parameters_and_the_llama_beside_it_is_nearest():
    published = AutoConfig.from_pretrained(RECIPES / "finance" / "bloomberggpt.json")
    with torch.device("meta"):
        bloom = AutoModelForCausalLM.from_config(published)
    assert sum(parameter.numel() for parameter in bloom.parameters()) == 50_558_868_480

    def parameters(intermediate_size: int) -> int:
        override = f"--model.intermediate_size={intermediate_size}"
        recipe = load_recipe([RECIPES / "finance" / "bloomberggpt.yaml"], [override])
        with torch.device("meta"):
            return count_module_parameters(build_model(recipe, recipe.tokenizer.vocab_size))["total"]

    assert parameters(20_480) == 50_552_931_840
    further = [abs(parameters(20_480 + step) - 50_558_868_480) for step in (-128, 128)]
    assert abs(parameters(20_480) - 50_558_868_480) < min(further)


SUBJECTS = [
    "작은 도서관은",
    "우리 동네 시장은",
    "오래된 기차역은",
    "겨울 바다는",
    "새로 온 선생님은",
    "할머니의 부엌은",
]
TIMES = ["아침마다", "비가 오는 날이면", "주말 저녁에", "해가 질 무렵", "첫눈이 내리면", "방학이 시작되면"]
PREDICATES = [
    "사람들로 붐빈다",
    "조용히 문을 연다",
    "따뜻한 빛으로 가득하다",
    "먼 길을 떠난 이들을 맞이한다",
    "이야기를 들려준다",
]


def write_korean(path, documents: int) -> None:
    """Write documents of made-up Korean sentences, one JSON object a line, each followed by one in English."""
    choose = random.Random(0).choice
    lines = []
    for number in range(documents):
        korean = " ".join(f"{choose(TIMES)} {choose(SUBJECTS)} {choose(PREDICATES)}." for _ in range(12))
        english = f"Line {number} of the manual was left untranslated, and the reader has to do it for himself. " * 3
        lines += [json.dumps({"text": text}, ensure_ascii=False) for text in (f"{number}번째 글. {korean}", english)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_custom_recipe_takes_korean_text_from_a_folder_to_tokens(tmp_path):
    (tmp_path / "texts").mkdir()
    write_korean(tmp_path / "texts" / "korean.jsonl", documents=60)
    sources = [{"name": "mine", "path": str(tmp_path / "texts")}]
    argv = ["--config", str(RECIPES / "custom" / "korean.yaml"), f"--data.sources={json.dumps(sources)}"]
    argv += [f"--run.output_dir={tmp_path / 'run'}", "--data.near_duplicates=null", "--data.workers=1"]
    for stage in (prepare_data, train_tokenizer, tokenize_corpus):
        stage.main(argv)
    stats = json.loads((tmp_path / "run" / "documents" / "stats.json").read_text())["sources"]["mine"]
    kept = sum(split["documents"] for split in stats["kept"].values())
    assert kept == 60, "all of the Korean, none of the English"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
    sentence = "아침마다 작은 도서관은 조용히 문을 연다."
    ids = tokenizer(sentence)["input_ids"]
    assert tokenizer.decode(ids) == sentence
    assert len(sentence.encode()) / len(ids) > 3, "pieces of more than one letter, which is three bytes"
    assert (tmp_path / "run" / "tokens" / "manifest.json").exists()
