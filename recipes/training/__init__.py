# SPDX-License-Identifier: Apache-2.0
"""How the model is trained: optimizers, schedule, stability, evaluation, records."""
