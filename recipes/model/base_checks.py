# SPDX-License-Identifier: Apache-2.0
"""Refuse a base that cannot be continued before any text is read, from its small files alone.

What only the weights show is refused when they are loaded, in continued.py.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import NotASafetensorsRepoError, OfflineModeIsEnabled, SafetensorsParsingError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedConfig

from mixture.shard_writer import encode_as_text
from model.continued import key_and_value, load_config, refuse_untied
from recipe_config import Model, Recipe, RecipeError
from vocabulary.bulk_encoding import encode
from vocabulary.document_ends import settle_document_ends
from vocabulary.taken_tokenizer import exact_tokenizer, save_taken
from vocabulary.token_bytes import refuse_changed_text, token_bytes
from vocabulary.tokenizer_extension import refuse_unextendable


EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
PROJECTIONS = ("lm_head.weight", "embed_out.weight")
SAMPLE = (
    "The Court HELD: \u00a7 12(b), \u00c9t\u00e9, \ud310\ub840\ubc95 \u6cd5\u5f8b; 0.5\u00a0mg "
    "\U0001f44d\n\n\t  two  spaces.\n"
)


def check_base(recipe: Recipe) -> None:
    """Check the model and the tokenizer that a recipe continues from.

    Raises: RecipeError: it says what is wrong, and what to do.
    """
    settings = recipe.model
    config = load_config(settings, recipe.training.sequence_length, recipe.data.phases)
    refuse_other_tensors(settings, config, tensor_names(settings))
    check_tokenizer(recipe, config)


def tensor_names(settings: Model) -> set[str] | None:
    """Return the names of a base's tensors; None where the Hub cannot be asked now.

    Raises: RecipeError: it has no safetensors, or they cannot be read.
    """
    place, where = settings.from_pretrained, key_and_value(settings)
    try:
        if not Path(place).is_dir():
            return set(HfApi().get_safetensors_metadata(place, revision=settings.revision).weight_map)
        names: set[str] = set()
        for path in sorted(Path(place).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                names.update(file.keys())
    except (OfflineModeIsEnabled, HTTPError):
        return None
    except (SafetensorError, SafetensorsParsingError) as error:
        raise RecipeError(f"{where}: its safetensors cannot be read: {error}; download it again") from error
    except NotASafetensorsRepoError:
        names = set()
    if not names:
        raise RecipeError(
            f"{where} has no model.safetensors, and no other kind of weights is read, since it may run code; save it "
            "again with transformers' save_pretrained where you trust it, or choose a base with safetensors"
        )
    return names


def refuse_other_tensors(settings: Model, config: PreTrainedConfig, names: set[str] | None) -> None:
    """Refuse files whose output projection contradicts tie_word_embeddings.

    Raises: RecipeError: the config unties it from the embedding, and the files have none; or it ties it, and they
        have another one.
    """
    if names is None:
        return
    embedding, projection = (
        next((name for name in names if name.endswith(ends)), None) for ends in (EMBEDDINGS, PROJECTIONS)
    )
    where = key_and_value(settings)
    if projection is None and not config.tie_word_embeddings:
        raise RecipeError(
            f"{where}: its config.json says tie_word_embeddings: false, and its files have no output projection; set "
            "it to true in a copy of the folder, if the embedding is the projection"
        )
    if config.tie_word_embeddings and embedding and projection:
        found = [read_tensor(settings, name) for name in (embedding, projection)]
        if not torch.equal(*found):
            refuse_untied(where)


def read_tensor(settings: Model, name: str) -> torch.Tensor:
    """Return a tensor of a base; the Hub's file with it is downloaded, which training needs too."""
    folder = Path(settings.from_pretrained)
    if folder.is_dir():
        paths = sorted(folder.glob("*.safetensors"))
    else:
        files = HfApi().get_safetensors_metadata(settings.from_pretrained, revision=settings.revision).weight_map
        paths = [Path(hf_hub_download(settings.from_pretrained, files[name], revision=settings.revision))]
    for path in paths:
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name)
    raise KeyError(name)


def check_tokenizer(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Check that the tokenizer of a run can be taken, and keeps a sample text.

    Raises: RecipeError: it cannot be loaded, changes text, does not begin and end documents, or cannot be extended.
    """
    taken, revision = recipe.tokenizer.from_pretrained, recipe.model.revision or recipe.tokenizer.revision
    taken = taken or recipe.model.from_pretrained
    where = f"from_pretrained={taken!r}: its tokenizer"
    try:
        wrapped = AutoTokenizer.from_pretrained(taken, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where} cannot be loaded: {error}") from error
    exact, _ = exact_tokenizer(wrapped, where)
    settle_document_ends(wrapped, where)
    with TemporaryDirectory() as folder:
        save_taken(wrapped, exact, Path(folder), config, where)
    plain = encode_as_text(exact)
    if recipe.tokenizer.extend_by is not None:
        refuse_unextendable(plain, where)
    refuse_changed_text(SAMPLE, encode(plain, SAMPLE).tolist(), token_bytes(plain), where)
