# SPDX-License-Identifier: Apache-2.0
"""How far bf16 moves the losses of a run, on one process, under DDP and under FSDP2: 40 steps of the tests' tiny run.

    PYTHONPATH=recipes:tests python tests/benchmarks/rounding.py --processes 2

Each form is compared with one process in fp32 and with one in bf16. FSDP2 gathers the embedding and the gains of the
norms rounded to bf16, and their gradients leave a process in bf16; where one process and DDP keep both in fp32. The
last row rounds these weights alike on one process: what it leaves is due to the gradients and the order of sums.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_run import TinyRun, write_tiny_texts

import prepare_data
import tokenize_corpus
import train_tokenizer


SHAPE = ["--model.hidden_size=64", "--model.num_hidden_layers=4", "--model.intermediate_size=128"]
FORMS = {  # precision, processes
    "one process, fp32": ("no", 1),
    "one process": ("bf16", 1),
    "DDP": ("bf16", None),
    "FSDP2": ("bf16", None),
    "one process, weights rounded": ("bf16", 1),
}


def train(form: str, argv: list[str]) -> None:
    """Train in a form, as one of its processes."""
    import torch
    from divided_models import fsdp2
    from torch.nn import functional as F
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    import pretrain
    from training import accelerators

    if form == "FSDP2":
        accelerators.Accelerator = fsdp2
    if form.endswith("rounded"):
        plain = LlamaRMSNorm.forward

        def with_rounded_gain(self, hidden: torch.Tensor) -> torch.Tensor:
            normalised = plain(self, hidden) / self.weight
            return self.weight.bfloat16() * normalised

        LlamaRMSNorm.forward = with_rounded_gain
        torch.nn.Embedding.forward = lambda self, ids: F.embedding(ids, self.weight.bfloat16()).float()
    pretrain.main(argv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--optimizer", default="muon")
    options = parser.parse_args()
    losses = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tiny_texts(folder / "texts")
        source = TinyRun(folder / "texts", folder / "run")
        for stage in (prepare_data, train_tokenizer, tokenize_corpus):
            stage.main(source.argv())
        for number, (form, (precision, processes)) in enumerate(FORMS.items()):
            run = source.copy(folder / f"run{number}")
            overrides = ["--training.max_tokens=10240", f"--training.optimizer={options.optimizer}"]
            argv = run.argv(*overrides, "--training.learning_rate=3e-3", *SHAPE)
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
            command = (
                [sys.executable, *launch, str(processes or options.processes)] if processes != 1 else [sys.executable]
            )
            settings = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": precision, "OMP_NUM_THREADS": "1"}
            command += [__file__, "one_of", form, json.dumps(argv)]
            subprocess.run(command, env=os.environ | settings, check=True, stdout=subprocess.DEVNULL)
            losses[form] = list(run.losses().values())
    print("form,largest difference from fp32,from one process in bf16,mean from one process in bf16")
    for form in list(FORMS)[1:]:
        exact, alone = (
            [abs(a - b) for a, b in zip(losses[form], losses[other], strict=True)] for other in list(FORMS)[:2]
        )
        print(f"{form},{max(exact):.1e},{max(alone):.1e},{sum(alone) / len(alone):.1e}")


if __name__ == "__main__":
    if "one_of" in sys.argv:
        train(*sys.argv[-2:-1], json.loads(sys.argv[-1]))
    else:
        main()
