# SPDX-License-Identifier: Apache-2.0
"""Models whose size and training tokens are published: the points of the charts.

Parameters are as their papers count them, in all. Tokens are those seen in training, repetitions included. FLOPs are
6 N D for each, which leaves out recomputed activations: BloombergGPT stands at 1.73e23, where its paper's 2.36e23
counts them; Gopher at 5.04e23, where Hoffmann et al. 2022 count 5.76e23.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A published model.

    Attributes:
        parameters: N, in all.
        tokens: D, seen in training.
        source: where both are printed.
    """

    name: str
    parameters: float
    tokens: float
    source: str

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


KNOWN_MODELS = [
    KnownModel("GPT-3", 174.6e9, 300e9, "arXiv 2005.14165, table D.1"),
    KnownModel("Gopher", 280e9, 300e9, "arXiv 2112.11446; arXiv 2203.15556, table 1"),
    KnownModel("Chinchilla", 70e9, 1.4e12, "arXiv 2203.15556"),
    KnownModel("OPT-175B", 175e9, 300e9, "arXiv 2205.01068; 300B seen of a corpus of 180B"),
    KnownModel("OPT-66B", 66e9, 300e9, "arXiv 2205.01068; 300B seen of a corpus of 180B"),
    KnownModel("BLOOM", 176.2e9, 366e9, "arXiv 2211.05100"),
    KnownModel("PaLM", 540.4e9, 780e9, "arXiv 2204.02311"),
    KnownModel("GPT-NeoX-20B", 20.6e9, 472e9, "EleutherAI/gpt-neox, configs/20B.yml: 150,000 steps of 3.15M tokens"),
    KnownModel("Pythia-12B", 11.85e9, 299.9e9, "EleutherAI/pythia, README.md"),
    KnownModel("LLaMA-7B", 6.7e9, 1.0e12, "arXiv 2302.13971, table 2"),
    KnownModel("LLaMA-65B", 65.2e9, 1.4e12, "arXiv 2302.13971, table 2"),
    KnownModel("Llama 2 70B", 70e9, 2.0e12, "meta-llama/llama, MODEL_CARD.md"),
    KnownModel("Llama 3 8B", 8.0e9, 15e12, "meta-llama/llama3, MODEL_CARD.md"),
    KnownModel("Llama 3 70B", 70.6e9, 15e12, "meta-llama/llama3, MODEL_CARD.md"),
    KnownModel("BloombergGPT", 50.6e9, 569e9, "arXiv 2303.17564, table 4"),
    KnownModel("Galactica", 120e9, 450e9, "arXiv 2211.09085; 106B different, 4.25 epochs"),
    KnownModel("BioMedLM", 2.7e9, 300e9, "arXiv 2403.18421; 34.6B different, 8.67 epochs"),
    KnownModel("TinyLlama", 1.1e9, 3e12, "jzhang38/TinyLlama, README.md; 950B different"),
    KnownModel("OLMo 2 7B", 7.3e9, 4e12, "allenai/OLMo-2-1124-7B, model card"),
    KnownModel("SmolLM2-1.7B", 1.71e9, 11e12, "arXiv 2502.02737"),
]

# Open weights that a team can continue, by size. Their tokens are those of the released checkpoint.
OPEN_MODELS = [
    KnownModel("Pythia-70M", 70.4e6, 299.9e9, "EleutherAI/pythia, README.md"),
    KnownModel("SmolLM2-135M", 135e6, 2e12, "arXiv 2502.02737"),
    KnownModel("SmolLM2-360M", 362e6, 4e12, "arXiv 2502.02737"),
    *(
        model
        for model in KNOWN_MODELS
        if model.name in {"TinyLlama", "SmolLM2-1.7B", "OLMo 2 7B", "Llama 3 8B", "GPT-NeoX-20B", "Llama 3 70B"}
    ),
]
