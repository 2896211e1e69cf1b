# SPDX-License-Identifier: Apache-2.0
"""Scaling laws: every published constant that the planner uses, with its source and what it calls N and C.

A law of size says which number of parameters N and of tokens D lose least for a compute C (FLOPs), and, where it has a
form for the loss, L(N, D) in nats per token of *its* corpus under *its* tokenizer. Which parameters N counts moves the
ratio of tokens to parameters up to three-fold on small models, so each law names its convention:

    total           every parameter, the input embedding and the output projection among them
    non_embedding   without the input embedding (and without the projection that is tied to it)
    multiplying     those that a token is multiplied by: without the input embedding, with the projection, tied or not
    non_vocabulary  without either

C is 6 N D with N so counted, and no activation computed twice.

References: Kaplan et al. 2020 (arXiv 2001.08361), Hoffmann et al. 2022, "Chinchilla" (2203.15556), Besiroglu et al.
2024 (2404.10102), Muennighoff et al. 2023 (2305.16264), Tao et al. 2024 (2407.13623).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np


FLOPS_PER_PARAMETER_AND_TOKEN = 6  # 2 in the forward pass, twice that in the backward pass
PETAFLOP_S_DAY = 1e15 * 24 * 3600
# Chinchilla, Table 3 (approach 1) and Table A3 (approaches 2 and 3): parameters, FLOPs, tokens of optimal runs. The
# paper prints 1.26e24 for 175B in approach 3; 6 * 175e9 * 12.0e12 is 1.26e25, and every other row satisfies 6 N D.
CHINCHILLA_PARAMETERS = (400e6, 1e9, 10e9, 67e9, 175e9, 280e9, 520e9, 1e12, 10e12)
CHINCHILLA_TABLES = {
    "chinchilla_1": (
        (1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28),
        (8.0e9, 20.2e9, 205.1e9, 1.5e12, 3.7e12, 5.9e12, 11.0e12, 21.2e12, 216.2e12),
    ),
    "chinchilla_2": (
        (1.84e19, 1.20e20, 1.32e22, 6.88e23, 4.54e24, 1.18e25, 4.19e25, 1.59e26, 1.75e28),
        (7.7e9, 20.0e9, 219.5e9, 1.7e12, 4.3e12, 7.1e12, 13.4e12, 26.5e12, 292.0e12),
    ),
    "chinchilla_3": (
        (2.21e19, 1.62e20, 2.46e22, 1.71e24, 1.26e25, 3.52e25, 1.36e26, 5.65e26, 8.55e28),
        (9.2e9, 27.1e9, 410.1e9, 4.1e12, 12.0e12, 20.1e12, 43.5e12, 94.1e12, 1425.5e12),
    ),
}


class Law(Protocol):
    """What every law of size has."""

    source: str
    counts: str

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens that lose least for so many FLOPs."""


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** exponent."""

    coefficient: float
    exponent: float

    def __call__(self, x: float) -> float:
        return self.coefficient * x**self.exponent


def fit_power_law(x, y) -> PowerLaw:
    """Fit a straight line through log y over log x by least squares, every point weighing the same."""
    exponent, intercept = np.polyfit(np.log10(x), np.log10(y), 1)
    return PowerLaw(float(10**intercept), float(exponent))


@dataclass(frozen=True)
class FrontierLaw:
    """A law that gives the optimal parameters and tokens as power laws of compute, and no loss.

    Attributes:
        source: where it is published.
        counts: which parameters its N counts, in the words of this file's docstring.
        parameters: N of the FLOPs.
        tokens: D of the FLOPs. None: C / (6 N).
    """

    source: str
    counts: str
    parameters: PowerLaw
    tokens: PowerLaw | None = None

    def optimum(self, flops: float) -> tuple[float, float]:
        parameters = self.parameters(flops)
        if self.tokens is None:
            return parameters, flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
        return parameters, self.tokens(flops)


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token.

    Attributes:
        source: where it is published.
        counts: which parameters its N counts, in the words of this file's docstring.
        E: loss that neither size nor text takes away: the entropy of the corpus, per token of its tokenizer.
        A, alpha: of the size. B, beta: of the text.
    """

    source: str
    counts: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Minimise the loss along 6 N D = flops (Hoffmann et al., equation 4)."""
        exponent = 1 / (self.alpha + self.beta)
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** exponent
        scale = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        return ratio * scale ** (self.beta * exponent), scale ** (self.alpha * exponent) / ratio


def chinchilla_frontier(name: str) -> FrontierLaw:
    """Fit approach 1 or 2 to the paper's own table, as section 3.2 of BloombergGPT (arXiv 2303.17564) does.

    The coefficients printed there have three decimals and do not give the printed sizes: their 10^-1.004 alone is off
    by 0.08 %, their exponent by 0.5 % at these FLOPs.
    """
    flops, tokens = CHINCHILLA_TABLES[name]
    table = "Table 3" if name == "chinchilla_1" else "Table A3"
    return FrontierLaw(
        f"Hoffmann et al. 2022, {table}, approach {name[-1]}",
        "total",
        fit_power_law(flops, CHINCHILLA_PARAMETERS),
        fit_power_law(flops, tokens),
    )


LAWS: dict[str, FrontierLaw | LossLaw] = {
    "chinchilla_1": chinchilla_frontier("chinchilla_1"),
    "chinchilla_2": chinchilla_frontier("chinchilla_2"),
    # The constants as the paper's source has them, not rounded to 1.69, 406.4, 410.7, 0.34, 0.28 as printed: only
    # these give its Figure 4, 40B parameters at Gopher's compute. The rows of its Table A3 follow from neither.
    "chinchilla_3": LossLaw(
        "Hoffmann et al. 2022, equation 10, approach 3",
        "total",
        E=math.exp(0.5267228),
        A=math.exp(6.0073404),
        B=math.exp(6.0179186),
        alpha=0.33917084,
        beta=0.2849083,
    ),
    "besiroglu": LossLaw(
        "Besiroglu et al. 2024, re-fit of approach 3",
        "total",
        E=1.81686,
        A=482.006,
        B=2085.434,
        alpha=0.34781,
        beta=0.36585,
    ),
    # For contrast. Its C is C_min, the compute at the smallest useful batch; at the critical batch a run costs twice
    # that, hence the 2 (so does Hoffmann et al., appendix D.4: 4.68B parameters at 1e21 FLOPs).
    "kaplan": FrontierLaw(
        "Kaplan et al. 2020, N = 1.3e9 C_min^0.73",
        "non_embedding",
        PowerLaw(1.3e9 / (2 * PETAFLOP_S_DAY) ** 0.73, 0.73),
    ),
}
# Besiroglu et al. 2024, standard errors of the re-fit (n = 240). Their covariance is not published.
BESIROGLU_STANDARD_ERRORS = {"E": 0.0257, "A": 124.5, "B": 1293.3, "alpha": 0.0154, "beta": 0.0206}


@dataclass(frozen=True)
class RepetitionLaw:
    """Muennighoff et al. 2023: repeated text adds less than new text, and so do parameters in excess.

    L(N, D) as in LossLaw, of the effective N and D. Fitted on 182 runs of 7M to 9B parameters and
    1 to 500 epochs over C4 (GPT-2's tokenizer).
    """

    source: str = "Muennighoff et al. 2023, section 6 and huggingface/datablations"
    counts: str = "total"
    law: LossLaw = LossLaw(
        source,
        counts,
        E=math.exp(0.6254804),
        A=math.exp(6.255414),
        B=math.exp(7.3049974),
        alpha=0.3526596,
        beta=0.3526596,
    )
    repeated_tokens: float = 15.387756  # R_D*: the decay constant of repetitions
    repeated_parameters: float = 5.309743  # R_N*

    def effective_tokens(self, tokens: float, unique_tokens: float) -> float:
        """Return how many new tokens `tokens` are equivalent to, `unique_tokens` of them being different."""
        return decayed_sum(tokens, min(tokens, unique_tokens), self.repeated_tokens)

    def effective_parameters(self, parameters: float, unique_tokens: float) -> float:
        """Return N without what it has in excess of the size that is optimal for the unique tokens alone."""
        a, b = self.law.alpha, self.law.beta
        ratio = (a * self.law.A / (b * self.law.B)) ** (1 / (a + b))
        fitting = (unique_tokens * ratio) ** (b / a) * ratio
        return decayed_sum(parameters, min(parameters, fitting), self.repeated_parameters)

    def loss(self, parameters: float, tokens: float, unique_tokens: float) -> float:
        """Return nats per token.

        Args:
            parameters: N.
            tokens: D, repetitions counted.
            unique_tokens: different tokens among them; U_D.
        """
        unique_tokens = min(tokens, unique_tokens)
        return self.law.loss(
            self.effective_parameters(parameters, unique_tokens), self.effective_tokens(tokens, unique_tokens)
        )

    def optimum(self, flops: float, unique_tokens: float, most_tokens: float = math.inf) -> tuple[float, float]:
        """Return the parameters and tokens that lose least for the FLOPs with at most `most_tokens` read in all."""

        def run(log_parameters: float) -> tuple[float, float]:
            parameters = math.exp(log_parameters)
            return parameters, min(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters), most_tokens)

        from scipy.optimize import minimize_scalar  # only here: training imports this module and minimises nothing

        # Without repetition the optimum is the law's own; with it, models become smaller or larger by less than this.
        middle = math.log(self.law.optimum(flops)[0])
        found = minimize_scalar(
            lambda x: self.loss(*run(x), unique_tokens), bounds=(middle - 7, middle + 7), method="bounded"
        )
        return run(found.x)


def decayed_sum(amount: float, fresh: float, half_life: float) -> float:
    """Return fresh + fresh R* (1 - exp(-R / R*)), where R = amount / fresh - 1 counts repetitions."""
    return fresh * (1 + half_life * -math.expm1(-(amount / fresh - 1) / half_life))


REPETITION_LAW = RepetitionLaw()


# The vocabulary law of Tao et al. 2024 (sail-sg/scaling-with-vocab, optimal_Nv_predict.py). N_v = V * hidden_size
# counts one matrix. Approaches 1 and 2 hold for runs whose compute is optimal for N_nv; approach 3 for any compute.


def vocabulary_compute(non_vocabulary_parameters: float) -> float:
    """Return the FLOPs for which so many non-vocabulary parameters are optimal under Tao et al."""
    return (non_vocabulary_parameters / math.exp(-2.4846510161625193)) ** 2


def optimal_vocabulary_parameters(
    non_vocabulary_parameters: float, approach: int = 3, flops: float | None = None
) -> float:
    """Return the optimal V * hidden_size of a model under Tao et al. 2024.

    Args:
        non_vocabulary_parameters: N_nv, from 33e6 on in the fit.
        approach: 1 (IsoFLOP), 2 (derivative) or 3 (loss).
        flops: compute of the run, for approach 3. None: what is optimal for N_nv.
    """
    from scipy.optimize import minimize_scalar  # only here: training imports this module and minimises nothing

    compute = vocabulary_compute(non_vocabulary_parameters)
    if approach == 1:
        return math.exp(-1.589031299255507) * compute**0.4163622634135234
    if approach == 2:
        return 3_145_728 * (non_vocabulary_parameters / 33e6) ** 0.8353974035228025

    def excess_loss(log_millions: float) -> float:  # N in millions, compute in 1e15, so tokens in 1e9
        vocabulary = math.exp(log_millions)
        tokens = (flops or compute) / 1e15 / (6 * (non_vocabulary_parameters / 1e6 + vocabulary))
        return 0.19584238398665638 / vocabulary**0.6707374679896795 + 2.1241123120064955 / tokens**0.44660634152009615

    middle = math.log(optimal_vocabulary_parameters(non_vocabulary_parameters, approach=2) / 1e6)
    found = minimize_scalar(excess_loss, bounds=(middle - 5, middle + 5), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x) * 1e6


def optimal_vocab_size(
    non_vocabulary_parameters: float, hidden_size: int, approach: int = 3, flops: float | None = None
) -> float:
    """Return the optimal vocabulary size; see `optimal_vocabulary_parameters`. Not rounded."""
    return optimal_vocabulary_parameters(non_vocabulary_parameters, approach, flops) / hidden_size


# Batch and learning rate.


@dataclass(frozen=True)
class TrainingRule:
    """Hyper-parameters that a rule gives for AdamW.

    Attributes:
        source: where the rule is published.
        tokens_per_step: batch (tokens).
        learning_rate: peak.
        warmup_tokens: tokens over which the learning rate rises, or None where the rule does not say.
    """

    source: str
    tokens_per_step: float
    learning_rate: float
    warmup_tokens: float | None = None


OLMO_PARAMETERS = (60e6, 7e9)  # from the smallest to the largest model that its ladder has


def olmo_rule(multiplying_parameters: float) -> TrainingRule:
    """Return the rule of allenai/OLMo-core, olmo_core/model_ladder/wsds_chinchilla_run_configurator.py.

    Made for 60M to 7B parameters, about 20 tokens a parameter and a warm-up-stable-decay schedule; batch and learning
    rate follow Porian et al. 2024 (arXiv 2406.19146). OLMo does not tie the projection to the embedding and leaves out
    the latter alone, so its N is `multiplying`.
    """
    relative = multiplying_parameters / 108e6
    return TrainingRule(
        "OLMo-core's model ladder",
        tokens_per_step=2048 * 160 * relative ** (2 / 3),
        learning_rate=0.0047 * relative ** (-1 / 3) / 2,
        warmup_tokens=multiplying_parameters,
    )


def deepseek_rule(flops: float) -> TrainingRule:
    """Return the rule of DeepSeek LLM (arXiv 2401.02954, equation 1), fitted on 1e17 to 2e19 FLOPs."""
    return TrainingRule(
        "DeepSeek LLM 2024, equation 1",
        tokens_per_step=0.2920 * flops**0.3271,
        learning_rate=0.3118 * flops**-0.1250,
    )


def power_lines_weight_decay(tokens_per_step: float, learning_rate: float, tokens: float, parameters: float) -> float:
    """Return AdamW's weight decay under Bergsma et al. 2025, "Power Lines" (arXiv 2505.13738).

    Its timescale, tokens_per_step / (learning_rate * weight_decay * tokens) of the run, is best at 1.084 (tokens /
    parameters)^-0.527. Fitted for muP on 111M to 3.3B parameters, 20 to 1,280 tokens a parameter, one epoch.
    """
    timescale = 1.084 * (tokens / parameters) ** -0.527
    return tokens_per_step / (learning_rate * tokens * timescale)


def bloomberg_hidden_size(num_hidden_layers: int) -> float:
    """Return the width for a depth, exp(5.039) exp(0.0555 L) (Levine et al. 2020, arXiv 2006.12467).

    It gives BloombergGPT's 7,510 at 70 layers. Made for large models: at 12 layers it gives 300, where 768 is usual.
    """
    return math.exp(5.039 + 0.0555 * num_hidden_layers)
